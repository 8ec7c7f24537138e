"""The one communication of the loss: every rank sees every rank's per-token numbers."""

import torch
import torch.distributed as dist
from torch import Tensor


def group_size(group: dist.ProcessGroup | None) -> int:
    """Ranks of the group, 1 for None."""
    return 1 if group is None else dist.get_world_size(group)


def gather_ranks(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """``[R, *local.shape]`` in the order of the group's ranks.

    One all-gather; none where there is one rank or nothing to send. The caller joins them, rather than the collective:
    maxima and sums then travel together, and sums are taken in fp64 in the same order on every rank.
    """
    size = group_size(group)
    if size == 1 or local.numel() == 0:
        return local.unsqueeze(0).expand(size, *local.shape)
    gathered = torch.empty((size, *local.shape), dtype=local.dtype, device=local.device)
    dist.all_gather(list(gathered.unbind(0)), local.contiguous(), group=group)
    return gathered
