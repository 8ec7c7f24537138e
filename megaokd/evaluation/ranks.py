"""How an evaluation is shared: a model over tensor-parallel ranks, batches over data-parallel ones."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist

from megaokd.mesh import ParallelMesh
from megaokd.parallel.region import TensorParallel

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """What this process does of an evaluation; without groups all of it."""

    device: torch.device
    tp: TensorParallel = field(default_factory=TensorParallel)
    data: dist.ProcessGroup | None = None

    @classmethod
    def alone(cls) -> "Ranks":
        """One process, on the GPU where there is one."""
        return cls(torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @classmethod
    def of(cls, mesh: ParallelMesh) -> "Ranks":
        """The tensor and the data axis of a mesh without a pipeline."""
        return cls(mesh.device, TensorParallel.on(mesh.tensor, sequence_parallel=False), mesh.data.group)

    def own(self, items: Iterable[T]) -> Iterator[T]:
        """Every n-th item, n the number of data-parallel ranks."""
        rank, size = (0, 1) if self.data is None else (dist.get_rank(self.data), dist.get_world_size(self.data))
        return (item for index, item in enumerate(items) if index % size == rank)

    def gather(self, own: T) -> list[T]:
        """Of every data-parallel rank. One gather of small objects."""
        if self.data is None:
            return [own]
        parts = [own] * dist.get_world_size(self.data)
        dist.all_gather_object(parts, own, group=self.data)
        return parts

    def total(self, own: float) -> float:
        """Summed over all processes. One gather, and one all-reduce where a model is split."""
        summed = torch.tensor(sum(self.gather(own)), dtype=torch.float64, device=self.device)
        if self.tp.size > 1:
            dist.all_reduce(summed, group=self.tp.group)
        return summed.item()
