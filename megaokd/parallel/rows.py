"""A student beside a wider teacher: groups of tensor-parallel ranks that take rows of the micro-batch of their own.

Each group holds a whole trunk, split over its ranks alone, and runs it on its rows. The vocabulary stays split over all
tensor-parallel ranks, as the teacher's is, so two borders are crossed:

    sum_own       embedding -> trunk   forward: reduce-scatter of the rows   backward: all-gather of the rows
    gather_kept   trunk -> head        forward: all-gather of loss tokens    backward: none, a slice

Activations are [rows, sequence, hidden]; the rows are dimension 0.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megaokd.parallel.kept import take_kept
from megaokd.parallel.layout import TensorLayout
from megaokd.parallel.region import TensorParallel

ROW_DIM = 0
ROW_BUCKET = 1 << 26
"""Elements of gradients that are copied together for one sum over row groups; 256 MiB."""


@dataclass(frozen=True)
class RowGroups:
    """The ranks that hold the same slice of the student's trunk, one of each group."""

    group: dist.ProcessGroup
    rank: int
    """The number of this rank's group, and of its part of the rows."""
    size: int
    """How many groups there are; it divides the rows of every micro-batch."""
    tensor: TensorParallel
    """All tensor-parallel ranks, over which the vocabulary is split."""

    def own(self, x: torch.Tensor) -> torch.Tensor:
        """This group's rows of what every rank has whole, a view: [b, ...] -> [b / size, ...]."""
        return x.chunk(self.size, ROW_DIM)[self.rank]

    def sum_own(self, x: torch.Tensor) -> torch.Tensor:
        """Sum over `group` what each rank has of all rows and keep this group's: [b, S, D] -> [b / size, S, D]."""
        result: torch.Tensor = _SumOwn.apply(x, self)
        return result

    def gather_kept(self, x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """The kept tokens of all groups, in the order of the rows: [b / size, S, D], bool [b, S] -> [T, D].

        keep: in host memory, as `take_kept` has it. One all-gather of size x [most tokens that a group keeps, D]; none
        where nothing is kept. The consumer's gradient is complete on every rank: backward takes this group's part,
        without communication.
        """
        counts = keep.unflatten(ROW_DIM, (self.size, -1)).flatten(1).sum(1).tolist()
        result: torch.Tensor = _GatherParts.apply(take_kept(x, self.own(keep)), counts, self)
        return result

    def shared(self, layout: TensorLayout) -> TensorLayout:
        """The layout among all tensor-parallel ranks of what has `layout` within a group."""
        return layout.repeated(self.size, self.rank)


class _SumOwn(torch.autograd.Function):
    """Reduce-scatter of the rows forward, all-gather backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rows: RowGroups) -> torch.Tensor:
        ctx.rows = rows
        own = x.new_empty(len(x) // rows.size, *x.shape[1:])
        dist.reduce_scatter_single(own, x.contiguous(), group=rows.group)
        return own

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        whole = grad.new_empty(len(grad) * ctx.rows.size, *grad.shape[1:])
        dist.all_gather_single(whole, grad.contiguous(), group=ctx.rows.group)
        return whole, None


class _GatherParts(torch.autograd.Function):
    """All-gather of parts of different lengths forward, padded to the longest; this rank's part backward."""

    @staticmethod
    def forward(ctx: Any, own: torch.Tensor, counts: list[int], rows: RowGroups) -> torch.Tensor:
        ctx.start, ctx.count = sum(counts[: rows.rank]), counts[rows.rank]
        longest = max(counts)
        if longest == 0:
            return own.clone()
        padded = own.new_zeros(longest, own.shape[1])
        padded[: len(own)] = own
        parts = own.new_empty(rows.size, *padded.shape)
        dist.all_gather_single(parts.flatten(0, 1), padded, group=rows.group)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return grad[ctx.start : ctx.start + ctx.count], None, None
