"""What every rank must agree on after backward: losses, metrics, gradient norms, trouble, a request to stop.

All of it travels in one all-reduce of fp64 numbers over the world.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megaokd.engine.parameters import GROUPS, GroupName
from megaokd.errors import UserError
from megaokd.mesh import ParallelMesh


@dataclass(frozen=True)
class StepReport:
    """The same on every rank: means over the global batch's loss tokens, and gradient norms before clipping."""

    metrics: dict[str, float]
    tokens: int
    norms: dict[GroupName, float]
    stop_requested: bool
    bad_ranks: list[int]

    def check_finite(self, step: int) -> None:
        """Refuse to update weights with a NaN or an infinity, naming step (from 1, as in logs) and ranks."""
        losses = {name: self.metrics[name] for name in ("student_loss", "teacher_loss") if name in self.metrics}
        bad: list[str] = [name for name, value in losses.items() if not math.isfinite(value)]
        bad += [f"{name} gradient norm" for name, value in self.norms.items() if not math.isfinite(value)]
        if bad:
            where = ", ".join(map(str, self.bad_ranks)) or "none before the sum over ranks"
            raise UserError(
                f"step {step + 1}: {', '.join(bad)} not finite (seen on ranks: {where}); no update was made and "
                "the last checkpoint is untouched. Lower the learning rate or lengthen the warm-up, or look at the "
                "examples of this step"
            )


def reduce_report(
    names: Sequence[str],
    sums: Mapping[str, torch.Tensor],
    square_norms: Mapping[GroupName, torch.Tensor],
    *,
    groups: Sequence[GroupName],
    gradients_finite: torch.Tensor | None,
    stop_requested: bool,
    mesh: ParallelMesh,
) -> StepReport:
    """Sum over the world. One all-reduce of len(names) + 3 + world fp64 numbers.

    `sums` is filled on the last stage only, and equal on its tensor-parallel ranks: the first of them speaks. `groups`
    are those that some rank trains; `gradients_finite` is about this rank's gradients before they were summed.
    """
    speaks = mesh.is_last_stage and mesh.tensor.rank == 0
    zero = torch.zeros((), dtype=torch.float64, device=mesh.device)
    values = [sums.get(name, zero) if speaks else zero for name in names]
    own = torch.stack([*sums.values(), zero]).isfinite().all()
    if gradients_finite is not None:
        own = own & gradients_finite
    flags = torch.zeros(mesh.world_size, dtype=torch.float64, device=mesh.device)
    flags[mesh.rank] = (~own).double()
    stop = torch.full((), float(stop_requested), dtype=torch.float64, device=mesh.device)
    norms = [square_norms.get(group, zero) for group in GROUPS]
    packed = torch.cat([torch.stack([*values, *norms, stop]), flags])
    dist.all_reduce(packed)
    numbers = packed.tolist()

    totals = dict(zip(names, numbers, strict=False))
    tokens = totals.pop("tokens")
    norm_at = len(names)
    return StepReport(
        metrics={name: total / max(1.0, tokens) for name, total in totals.items()},
        tokens=int(tokens),
        norms={group: math.sqrt(numbers[norm_at + i]) for i, group in enumerate(GROUPS) if group in groups},
        stop_requested=numbers[norm_at + 2] > 0,
        bad_ranks=[rank for rank, flag in enumerate(numbers[norm_at + 3 :]) if flag > 0],
    )
