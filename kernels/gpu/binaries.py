"""What compilers make of the kernels, without a device: registers, spills, and the instructions of the main loop.

    python -m megaokd.kernels.gpu.binaries          # the table of README.md

Each kernel is compiled ahead of time, for bf16, from the launch that tensors of the same shapes get on a device.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

from ..layout import Logits, Target
from ..spec import NUM_MIXTURE_SUMS, NUM_SCALARS, LossSpec
from ..terms import Objective, parse_objective
from .backend import gradients_launch, mixtures_launch, statistics_launch
from .disassembly import Code, read_amdgcn, read_cubin
from .launch import OPTIONS, Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
WIDTHS = (16032, 32063, 32064, 64128, 128256, 151936)  # columns of a shard
NUM_TOKENS = 8192
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64"}
EXP = {"cuda": "MUFU", "hip": "v_exp_f32"}
LARGEST_OCCUPANCY = {"cuda": 64, "hip": 32}  # warps of a multiprocessor, waves of a compute unit


@dataclass(frozen=True)
class Report:
    """What one binary is made of.

    registers  of a thread; AMD: vector registers
    spills     0 if nothing is spilled, see `disassembly.Code`
    warps      of NVIDIA's multiprocessor or AMD's compute unit that these registers leave room for
    slots      instructions of the main loop for each column of a row: a logit pair where both models are read
    exps       special-function operations among them
    accesses   bytes that the loads and stores of the main loop move, each size once
    """

    registers: int
    spills: int
    warps: int
    slots: float
    exps: float
    accesses: frozenset[int]


def _type_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return f"*{DTYPES[value.dtype]}"
    if isinstance(value, tuple):
        return tuple(_type_of(item) for item in value)
    return "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"


def source_of(launch: Launch, target: GPUTarget) -> ASTSource:
    """All that the compiler is told of a launch; its tensors may be on the meta device, where they count as aligned."""
    backend = make_backend(target)
    constants = {parameter.name for parameter in launch.kernel.params if parameter.is_constexpr}
    signature: dict[str, Any] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments[name]
        if name in constants or value is None:
            signature[name], constexprs[(index,)] = "constexpr", value
            continue
        signature[name] = _type_of(value)
        if isinstance(value, Tensor):
            attributes[(index,)] = backend.parse_attr(backend.get_tensor_specialization(value, align=True))
    return ASTSource(launch.kernel, signature, constexprs, attributes)


def occupancy(registers: int, backend: str) -> int:
    """Warps in groups of a program's four (NVIDIA), waves of a compute unit's four SIMD units (AMD)."""
    allocated = -(-registers // 8) * 8
    fitting = 65536 // (allocated * 32) // 4 * 4 if backend == "cuda" else 512 // allocated * 4
    return min(fitting, LARGEST_OCCUPANCY[backend])


def report(launch: Launch, target: GPUTarget) -> Report:
    """Compiles a launch and reads its binary."""
    binary = triton.compile(source_of(launch, target), target=target, options=OPTIONS).asm
    code: Code = read_cubin(binary["cubin"]) if target.backend == "cuda" else read_amdgcn(binary["amdgcn"])
    loop = code.main_loop
    read = [launch.arguments[name] for name in ("student", "teacher") if launch.arguments[name] is not None]
    columns = loop.loaded / sum(x.element_size() for x in read)
    return Report(
        code.registers,
        code.spills,
        occupancy(code.registers, target.backend),
        len(loop.operations) / columns,
        sum(x.startswith(EXP[target.backend]) for x in loop.operations) / columns,
        frozenset(access.size for access in loop.accesses),
    )


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


@dataclass(frozen=True)
class Case:
    """A call of the loss: the launches of its passes for a shard of so many columns."""

    width: int
    student: Objective
    teacher: Objective = None
    temperature: float = 1.0
    has_teacher: bool = True
    dtype: torch.dtype = torch.bfloat16

    @property
    def spec(self) -> LossSpec:
        """Without a group: the shard is the whole vocabulary."""
        terms = parse_objective(self.student, "student"), parse_objective(self.teacher, "teacher")
        return LossSpec(*terms, self.temperature, 0, self.width, self.width, self.has_teacher)

    @property
    def logits(self) -> Logits:
        """Contiguous rows."""
        student, teacher = (_meta(NUM_TOKENS, self.width, dtype=self.dtype) for _ in range(2))
        return Logits(student, teacher if self.has_teacher else None, _meta(NUM_TOKENS, dtype=torch.int64))

    def statistics(self) -> Launch:
        """The first pass."""
        return statistics_launch(self.logits, self.spec)[0]

    def mixtures(self) -> Launch:
        """The second."""
        return mixtures_launch(self.logits, _meta(NUM_SCALARS, NUM_TOKENS), self.spec)[0]

    def gradients(self) -> Launch:
        """Backward; a teacher without an objective is frozen."""
        scalars = _meta(NUM_SCALARS + NUM_MIXTURE_SUMS * len(self.spec.mixtures), NUM_TOKENS)
        names = ("student", "teacher") if self.spec.trains_teacher else ("student",)
        targets = {name: Target(_meta(NUM_TOKENS), _meta(NUM_TOKENS, self.width, dtype=self.dtype)) for name in names}
        return gradients_launch(self.logits, scalars, self.spec, targets)


def launches(width: int) -> Iterator[tuple[str, Launch]]:
    """What the table lists, for shards of that many columns."""
    default = {"ce": 1.0, "forward_kl": 1.0}
    every, jsd, tvd = {**default, "reverse_kl": 1.0}, {"jsd": 1.0}, {"tvd": 1.0}
    both = Case(width, every, every)
    statistics = both.statistics()
    bare = {"ENTROPY": False, "ARGMAX": False}
    yield "statistics", statistics
    yield "statistics, no entropy, no argmax", replace(statistics, arguments={**statistics.arguments, **bare})
    yield "statistics, tau 2", replace(both, temperature=2.0).statistics()
    yield "statistics, student alone", Case(width, {"ce": 1.0}, has_teacher=False).statistics()
    yield "second pass, jsd", Case(width, jsd).mixtures()
    yield "second pass, tvd", Case(width, tvd).mixtures()
    yield "gradients", replace(both, student=default, teacher=default).gradients()
    yield "gradients, reverse_kl too", both.gradients()
    yield "gradients, tau 2", replace(both, temperature=2.0).gradients()
    yield "gradients, frozen teacher", replace(both, teacher=None).gradients()
    yield "gradients, jsd", Case(width, jsd, jsd).gradients()


def main() -> None:
    """Prints the table. The width matters on AMD alone, where tensors of up to 2 GiB are addressed differently."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--width", type=int, default=WIDTHS[0], help="columns of a shard")
    width = parser.parse_args().width
    print(f"triton {triton.__version__}, torch {torch.__version__}, bf16, V_local {width}\n")
    print("| kernel | target | registers | spills | warps | slots | exps |\n|---|---|---|---|---|---|---|")
    for name, launch in launches(width):
        for target_name, target in TARGETS.items():
            row = report(launch, target)
            numbers = f"{row.registers} | {row.spills} | {row.warps} | {row.slots:.1f} | {row.exps:.2f}"
            print(f"| {name} | {target_name} | {numbers} |")


if __name__ == "__main__":
    main()
