"""A rank's slice of a global tensor in the form that torch.distributed.checkpoint understands.

DTensor placements cannot say "these two ranks hold the same KV head" or "the last rows are padding"; offsets can. The
class implements what the library's checkpointable protocol (the one that DTensor itself implements) asks of a tensor
that is read into, so that reading finds every region of it in whatever files another layout has written.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

from megaokd.parallel.layout import TensorLayout


class GlobalSlice(torch.Tensor):
    """A tensor that knows its place in a larger one. `size()` is the larger one's, as for a DTensor."""

    offsets: torch.Size
    global_size: torch.Size

    @classmethod
    def of(cls, local: torch.Tensor, layout: TensorLayout) -> "GlobalSlice":
        """The valid part of a local tensor; shares its memory."""
        part = layout.valid_part(local).as_subclass(cls)
        part.offsets = torch.Size([layout.start if dim == layout.dim else 0 for dim in range(local.ndim)])
        part.global_size = torch.Size(layout.global_shape(local.shape))
        return part

    def placed(self, memory: torch.Tensor) -> "GlobalSlice":
        """Other memory of the same shape as this slice of the same global tensor."""
        part = memory.as_subclass(type(self))
        part.offsets, part.global_size = self.offsets, self.global_size
        return part

    def plain(self) -> torch.Tensor:
        """The slice as an ordinary tensor."""
        return self.as_subclass(torch.Tensor)

    def size(self, dim: int | None = None) -> Any:
        """The global size: what the library compares with the checkpoint's."""
        return self.global_size if dim is None else self.global_size[dim]

    def __create_chunk_list__(self) -> Sequence[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(self.offsets, self.plain().size())]

    def __get_tensor_shard__(self, index: MetadataIndex) -> torch.Tensor:
        return self.plain()
