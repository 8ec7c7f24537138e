"""Hidden states that are split over the tokens, for a head that is split over the vocabulary."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class _GatherSequence(torch.autograd.Function):
    """All-gather forward. Backward takes this rank's share of a gradient that is already the sum over the ranks."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.length = group, len(hidden)
        gathered = torch.empty((dist.get_world_size(group), *hidden.shape), dtype=hidden.dtype, device=hidden.device)
        dist.all_gather(list(gathered.unbind(0)), hidden.contiguous(), group=group)
        return gathered.flatten(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        start = dist.get_rank(ctx.group) * ctx.length
        return gradient[start : start + ctx.length], None


def gather_sequence(hidden: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """``[T / ranks, D]`` of each rank, joined to ``[T, D]``. Collectives: one all-gather forward, none backward."""
    gathered: Tensor = _GatherSequence.apply(hidden, group)
    return gathered
