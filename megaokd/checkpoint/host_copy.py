"""A copy of a rank's share of a checkpoint in host memory, so that training goes on while it is written."""

from collections.abc import Iterable

import torch

from megaokd.checkpoint.slices import GlobalSlice


class HostCopy:
    """Buffers that are filled at each save and kept between saves: pinned where tensors come from a GPU.

    They take as much host memory as this rank writes to disk.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def fill(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Copy every tensor, one after the other, and return the copies under the same names."""
        copies: dict[str, torch.Tensor] = {}
        on_device = False
        for name, tensor in tensors:
            source = tensor.plain() if isinstance(tensor, GlobalSlice) else tensor
            buffer = self._buffers.get(name)
            if buffer is None:
                buffer = torch.empty(source.shape, dtype=source.dtype, pin_memory=source.is_cuda)
                self._buffers[name] = buffer
            buffer.copy_(source, non_blocking=True)
            on_device |= source.is_cuda
            copies[name] = tensor.placed(buffer) if isinstance(tensor, GlobalSlice) else buffer
        if on_device:
            torch.cuda.synchronize()
        return copies
