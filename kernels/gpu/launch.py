"""From tensors to a kernel's arguments; also from meta tensors, so that a launch can be compiled without a device."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

VECTOR_BYTES = 16  # what one load or store instruction moves
LOADS = 256  # of a block: two for each of a program's 128 threads on NVIDIA, one for each of 256 on AMD
PROGRAMS = 1024  # enough to fill a device; rows are cut into parts while there are fewer
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel; compile-time constants are among the arguments."""

    kernel: Any
    grid: tuple[int, int]
    arguments: Mapping[str, Any]

    def run(self) -> None:
        """Launches on the device of the tensors."""
        device = next(x for x in self.arguments.values() if isinstance(x, Tensor)).device
        with torch.cuda.device(device if device.type == "cuda" else -1):
            self.kernel[self.grid](**self.arguments, **OPTIONS)


@dataclass(frozen=True)
class Parts:
    """How rows are cut so that few of them fill a device."""

    parts: int
    blocks_per_part: int

    @classmethod
    def of(cls, num_rows: int, num_columns: int, vector: int) -> "Parts":
        """As few parts as fill a device; a row that does not begin on a boundary may touch one block more."""
        blocks = -(-(num_columns + vector - 1) // (LOADS * vector))
        blocks_per_part = -(-blocks // min(blocks, -(-PROGRAMS // num_rows)))
        return cls(-(-blocks // blocks_per_part), blocks_per_part)


def vector_length(*tensors: Tensor | None) -> int:
    """Elements of a load: those of the widest dtype, so that all tensors are cut into the same tiles."""
    return VECTOR_BYTES // max(x.element_size() for x in tensors if x is not None)


def rows_of(name: str, x: Tensor | None) -> dict[str, Any]:
    """A tensor [n, V] as a pointer to the 16-byte boundary at or below its first element, its row stride and offset."""
    if x is None:
        return {name: None, f"{name}_stride": 0, f"{name}_offset": 0}
    stride = x.stride(0) if len(x) > 1 else 0
    offset = x.data_ptr() % VECTOR_BYTES // x.element_size()
    if offset > x.storage_offset():  # a foreign storage that begins off a boundary: right, and slow
        return {name: x, f"{name}_stride": stride, f"{name}_offset": 0}
    if offset:
        x = x.as_strided((1, 1), (1, 1), x.storage_offset() - offset)
    return {name: x, f"{name}_stride": stride, f"{name}_offset": offset}


def are_aligned(rows: Mapping[str, Any], name: str, vector: int) -> bool:
    """Whether every row of that tensor begins as far from a boundary as the student's."""
    return all((rows[f"{name}_{what}"] - rows[f"student_{what}"]) % vector == 0 for what in ("stride", "offset"))
