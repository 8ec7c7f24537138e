"""Held-out data: losses of both models, how far the teacher has moved, and whether this is the best so far."""

import time
from dataclasses import dataclass

from megaokd.callbacks.base import ValidationRecord
from megaokd.checkpoint.state import RunState
from megaokd.config import Train
from megaokd.engine.step import evaluate_batches
from megaokd.errors import UserError
from megaokd.run import Run


def validate(run: Run, step: int) -> ValidationRecord:
    """Means over the validation set; `teacher_drift` is KL(adapted teacher || original teacher). Collective."""
    assert run.validation_batches is not None
    started = time.perf_counter()
    batches = list(run.validation_batches)
    metrics = evaluate_batches(batches, run.step.runner, run.step.loss, run.mesh)
    named = {f"validation/{name}": value for name, value in metrics.items()}
    if run.drift is not None:
        drift = evaluate_batches(batches, run.drift.runner, run.drift.loss, run.mesh)
        named["validation/teacher_drift"] = drift["forward_kl"]
        named["validation/original_teacher_ce"] = drift["student_ce"]
    return ValidationRecord(step, named, time.perf_counter() - started)


@dataclass(frozen=True)
class Verdict:
    """What a validation means for the run."""

    is_best: bool
    stop_early: bool


def judge(record: ValidationRecord, state: RunState, train: Train) -> Verdict:
    """Compare with the best so far and write the outcome into `state`.

    Raises:
        UserError: `train.best_metric` is not one of the metrics.
    """
    if train.best_metric not in record.metrics:
        raise UserError(f"train.best_metric={train.best_metric!r} is not measured; one of {sorted(record.metrics)}")
    value = record.metrics[train.best_metric]
    is_best = not state.best or value < state.best["value"]
    if is_best:
        state.best = {"step": record.step, "metric": train.best_metric, "value": value}
    state.validations_without_gain = 0 if is_best else state.validations_without_gain + 1
    patience = train.early_stopping
    return Verdict(is_best, stop_early=patience > 0 and state.validations_without_gain >= patience)
