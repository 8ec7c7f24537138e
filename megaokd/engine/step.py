"""One optimizer step, and one evaluation of a batch."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from megaokd.config import Optimizer, OptimizerGroup
from megaokd.data.batch import Batch
from megaokd.distill.objective import HiddenStateLoss, Terms
from megaokd.engine.engine import TrainingEngine
from megaokd.engine.learning_rate import learning_rate
from megaokd.engine.parameters import GroupName
from megaokd.engine.report import StepReport, reduce_report
from megaokd.mesh import ParallelMesh
from megaokd.parallel.kept import to_device
from megaokd.pipeline.schedule import Runner
from megaokd.trunk_cache.reader import TrunkReader


@dataclass(frozen=True)
class TrainingStep:
    """Everything that a step needs; call it with the step's number and this rank's part of the global batch."""

    engine: TrainingEngine
    runner: Runner
    loss: HiddenStateLoss
    mesh: ParallelMesh
    optimizer: Optimizer
    total_steps: int
    groups: tuple[GroupName, ...]
    """The parameter groups that this run trains, on whatever rank."""
    trunk: TrunkReader | None = None
    """What a trunk cache knows of the training data."""
    generated_terms: Terms | None = None
    """The loss on batches whose responses the student has written."""

    def __call__(self, step: int, batch: Batch, *, stop_requested: bool = False) -> StepReport:
        """Forward and backward of both models, reduction, checks, clipping, update.

        A loss is a sum over tokens divided by the global batch's number of loss tokens, once, for every term.

        Raises:
            UserError: a loss or gradient is not finite; raised on every rank, before the update.
        """
        terms = self.loss.terms
        if batch.generated:
            assert self.generated_terms is not None
            terms = self.generated_terms
        scale = self.mesh.data.size / max(1, batch.loss_tokens)
        inputs = runner_inputs(batch, self.mesh.device, self.trunk)
        with self.loss.with_terms(terms), self.engine.accumulate():
            self.runner.forward_backward(*inputs, scale=scale)
        report = reduce_report(
            self.loss.names,
            self.loss.take_sums(),
            self.engine.square_norms(),
            groups=self.groups,
            gradients_finite=self.engine.local_gradients_finite,
            stop_requested=stop_requested,
            mesh=self.mesh,
        )
        report.check_finite(step)
        self.engine.clip(report.norms)
        self.engine.step(self.learning_rates(step))
        return report

    def learning_rates(self, step: int) -> dict[GroupName, float]:
        """Both groups' learning rates at a step."""
        options: dict[GroupName, OptimizerGroup] = {"student": self.optimizer.student, "online": self.optimizer.online}
        return {name: learning_rate(options[name], step, self.total_steps) for name in self.groups}


def evaluate_batches(
    batches: Iterable[Batch],
    runner: Runner,
    loss: HiddenStateLoss,
    mesh: ParallelMesh,
    trunk: TrunkReader | None = None,
) -> dict[str, float]:
    """Per-token means of every metric over batches, equal on all ranks. One all-reduce at the end."""
    for batch in batches:
        runner.forward(*runner_inputs(batch, mesh.device, trunk))
    report = reduce_report(
        loss.names, loss.take_sums(), {}, groups=(), gradients_finite=None, stop_requested=False, mesh=mesh
    )
    return report.metrics


def runner_inputs(
    batch: Batch, device: torch.device, trunk: TrunkReader | None = None
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Tokens and labels, [M, b, S] each, and what else the stages need: see `Runner`.

    A trunk stays in host memory; a stage moves a micro-batch of it at a time. So do labels: which tokens carry loss,
    and how many, is known there without waiting for the device.
    """
    extras = {}
    if batch.positions is not None:
        extras["positions"] = to_device(batch.positions, device)
    known = trunk(batch) if trunk is not None else None
    if known is not None:
        extras["trunk"] = known
    return to_device(batch.tokens, device), batch.labels, extras
