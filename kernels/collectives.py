"""The communication of the loss: every rank sees every rank's per-token numbers."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


def group_size(group: dist.ProcessGroup | None) -> int:
    """Ranks of the group, 1 for None."""
    return 1 if group is None else dist.get_world_size(group)


@dataclass
class PendingGather:
    """An all-gather on its way, or already done where ``work`` is None."""

    gathered: Tensor
    work: dist.Work | None

    def wait(self) -> Tensor:
        """``[R, *local.shape]`` in the order of the group's ranks."""
        if self.work is not None:
            self.work.wait()
        return self.gathered


def start_gather(local: Tensor, group: dist.ProcessGroup | None) -> PendingGather:
    """Starts one all-gather; none where there is one rank or nothing to send.

    The caller joins the ranks' numbers, rather than the collective: maxima and sums then travel together, and sums are
    taken in fp64 in the same order on every rank.
    """
    size = group_size(group)
    if size == 1 or local.numel() == 0:
        return PendingGather(local.unsqueeze(0).expand(size, *local.shape), None)
    gathered = torch.empty((size, *local.shape), dtype=local.dtype, device=local.device)
    work = dist.all_gather(list(gathered.unbind(0)), local.contiguous(), group=group, async_op=True)
    return PendingGather(gathered, work)


def gather_ranks(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """`start_gather`, and waits."""
    return start_gather(local, group).wait()
