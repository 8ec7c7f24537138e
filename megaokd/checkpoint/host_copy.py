"""A copy of a rank's share of a checkpoint in host memory, so that training goes on while it is written."""

import math
from collections.abc import Iterable

import torch

from megaokd.checkpoint.slices import GlobalSlice

SLAB_BYTES = 1 << 28
_ALIGNED = 64


class HostCopy:
    """Buffers that are filled at each save and kept between saves: pinned where tensors come from a GPU.

    They take as much host memory as this rank writes to disk, and pinned ones the rest of their last slab.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}
        self._pinned = PinnedMemory()

    def fill(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Copy every tensor, one after the other, and return the copies under the same names."""
        copies: dict[str, torch.Tensor] = {}
        on_device = False
        for name, tensor in tensors:
            source = tensor.plain() if isinstance(tensor, GlobalSlice) else tensor
            buffer = self._buffers.get(name)
            if buffer is None:
                empty = self._pinned.empty if source.is_cuda else torch.empty
                buffer = self._buffers[name] = empty(source.shape, dtype=source.dtype)
            buffer.copy_(source, non_blocking=True)
            on_device |= source.is_cuda
            copies[name] = tensor.placed(buffer) if isinstance(tensor, GlobalSlice) else buffer
        if on_device:
            torch.cuda.synchronize()
        return copies


class PinnedMemory:
    """Tensors side by side in slabs of pinned memory.

    torch takes pinned memory in powers of two, and a tensor by itself up to twice its size; what is left of a slab here
    takes the tensors that come later.
    """

    def __init__(self, *, pin: bool = True) -> None:
        self.slabs: list[torch.Tensor] = []
        self._pin = pin
        self._used: list[int] = []

    def empty(self, shape: torch.Size, *, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor, contiguous."""
        size = math.prod(shape) * dtype.itemsize
        taken = -(-size // _ALIGNED) * _ALIGNED
        fits = (index for index, slab in enumerate(self.slabs) if self._used[index] + taken <= len(slab))
        place = next(fits, None)
        if place is None:
            place = len(self.slabs)
            slab_bytes = max(SLAB_BYTES, 1 << (taken - 1).bit_length())
            self.slabs.append(torch.empty(slab_bytes, dtype=torch.uint8, pin_memory=self._pin))
            self._used.append(0)
        start = self._used[place]
        self._used[place] += taken
        return self.slabs[place][start : start + size].view(dtype).view(shape)
