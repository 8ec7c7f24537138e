"""Reads the main loop of a kernel out of NVIDIA and AMD machine code.

The main loop is the innermost loop that, without a condition, loads the most bytes: all other loops walk a row's edges
or clear it.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

AMD_SIZES = {"dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


@dataclass(frozen=True)
class Instruction:
    """operation without operands; target: index of the instruction that it may jump to."""

    operation: str
    conditional: bool
    target: int | None


@dataclass(frozen=True)
class Access:
    """A load or store of device memory, and the bytes of it that a thread moves."""

    is_load: bool
    size: int


@dataclass(frozen=True)
class Loop:
    """A loop's operations in order, and those of its accesses."""

    operations: tuple[str, ...]
    accesses: tuple[Access, ...]

    @property
    def loaded(self) -> int:
        """Bytes that a thread loads in one iteration."""
        return sum(access.size for access in self.accesses if access.is_load)


@dataclass(frozen=True)
class Code:
    """A disassembled kernel.

    registers  of a thread
    spills     bytes of stack and instructions that touch it (NVIDIA), spilled registers (AMD)
    """

    registers: int
    spills: int
    main_loop: Loop


def _nvidia_access(operation: str) -> Access | None:
    name, *modifiers = operation.split(".")
    if name not in ("LDG", "STG"):
        return None
    sizes = [int(bits[1]) // 8 for x in modifiers if (bits := re.fullmatch(r"[US]?(8|16|64|128)", x))]
    return Access(name == "LDG", sizes[0] if sizes else 4)


def _amd_access(operation: str) -> Access | None:
    found = re.match(r"(?:global|buffer)_(load|store)_(u|s)?(byte|short|dword\w*)", operation)
    if found is None:
        return None
    return Access(found[1] == "load", {"byte": 1, "short": 2}.get(found[3]) or AMD_SIZES[found[3].split("_")[0]])


def _main_loop(code: Sequence[Instruction], access_of: Callable[[str], Access | None], guard: str) -> Loop:
    """guard: an operation that makes what follows it conditional."""
    loops = [(x.target, end) for end, x in enumerate(code) if x.target is not None and x.target <= end]
    candidates = []
    for start, end in loops:
        body = code[start : end + 1]
        inner = any(start <= other[0] and other[1] <= end and other != (start, end) for other in loops)
        accesses = [(x, access_of(x.operation)) for x in body]
        guarded = any(x.conditional and access and access.is_load for x, access in accesses)
        if not inner and not guarded and not any(re.match(guard, x.operation) for x in body):
            candidates.append(Loop(tuple(x.operation for x in body), tuple(access for _, access in accesses if access)))
    best = max(candidates, key=lambda loop: loop.loaded)
    assert best.loaded
    assert [loop.loaded for loop in candidates].count(best.loaded) == 1, "more than one loop may be the main loop"
    return best


def _cuobjdump(cubin: bytes, option: str) -> str:
    """The disassembler inside the Triton package."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), option, file.name], capture_output=True, text=True, check=True).stdout


def read_cubin(cubin: bytes) -> Code:
    """NVIDIA. `LOCAL` of the resource usage reads 0 even where a kernel spills, so stack accesses are counted too."""
    usage = re.search(r"REG:(\d+) STACK:(\d+)", _cuobjdump(cubin, "-res-usage"))
    assert usage is not None
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?(\S+)([^;]*);", _cuobjdump(cubin, "-sass"))
    index = {int(address, 16): number for number, (address, *_) in enumerate(lines)}
    code = []
    for _, predicate, operation, operands in lines:
        jump = re.search(r"0x([0-9a-f]+)", operands) if operation.startswith("BRA") else None
        code.append(Instruction(operation, bool(predicate), index.get(int(jump[1], 16)) if jump else None))
    stack_accesses = sum(bool(re.match("STL|LDL", x.operation)) for x in code)
    return Code(int(usage[1]), int(usage[2]) + stack_accesses, _main_loop(code, _nvidia_access, "(?!)"))


def read_amdgcn(assembly: str) -> Code:
    """AMD, from the text that the assembler is given."""
    registers = re.search(r"\.vgpr_count:\s+(\d+)", assembly)
    spills = re.search(r"\.vgpr_spill_count:\s+(\d+)", assembly)
    assert registers is not None
    assert spills is not None
    labels: dict[str, int] = {}
    lines: list[tuple[str, str]] = []
    for line in assembly.splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"\t([a-z]\w+)\s*([^;]*)", line):
            lines.append((instruction[1], instruction[2].strip()))
    code = [
        Instruction(operation, False, labels.get(operands) if operation.startswith("s_cbranch") else None)
        for operation, operands in lines
    ]
    return Code(int(registers[1]), int(spills[1]), _main_loop(code, _amd_access, "s_and_saveexec"))
