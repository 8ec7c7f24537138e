"""Held-out data: losses of both models, how far the teacher has moved, and whether this is the best so far."""

import math
import time

from megaokd.callbacks.base import ValidationRecord
from megaokd.checkpoint.state import RunState
from megaokd.config import Train
from megaokd.distill.module_norms import module_norms
from megaokd.distill.objective import DRIFT_METRICS
from megaokd.engine.step import evaluate_batches
from megaokd.errors import UserError
from megaokd.run import Run
from megaokd.samples import TextSampler


def validate(run: Run, step: int, sampler: TextSampler | None = None) -> ValidationRecord:
    """Means over the validation set; `teacher_drift` is KL(adapted teacher || original teacher). Collective."""
    assert run.validation_batches is not None
    started = time.perf_counter()
    batches = run.validation_batches
    metrics = evaluate_batches(batches, run.step.runner, run.step.loss, run.mesh, run.validation_trunk)
    named = {f"validation/{name}": value for name, value in metrics.items()}
    if run.drift is not None:
        drift = evaluate_batches(batches, run.drift.runner, run.drift.loss, run.mesh, run.validation_trunk)
        values = (drift["forward_kl"], drift["student_ce"])
        named |= {f"validation/{name}": value for name, value in zip(DRIFT_METRICS, values, strict=True)}
    adapts = run.config.teacher.path is not None and run.config.teacher.online is not None
    norms = module_norms(run.models.teachers, run.mesh.tensor, run.mesh.pipeline) if adapts else {}
    samples = sampler(step) if sampler is not None else []
    return ValidationRecord(step, named, time.perf_counter() - started, norms, samples)


def metric_names(run: Run) -> list[str]:
    """What `validate` measures in this run."""
    names = [name for name in run.step.loss.names if name != "tokens"]
    return [f"validation/{name}" for name in (*names, *(DRIFT_METRICS if run.drift is not None else ()))]


def check_best_metric(train: Train, run: Run) -> None:
    """Refuse a `train.best_metric` that no validation of this run will measure."""
    if train.validate_every and train.best_metric not in metric_names(run):
        raise UserError(f"train.best_metric={train.best_metric!r} is not measured; one of {metric_names(run)}")


def judge(record: ValidationRecord, state: RunState, train: Train) -> bool:
    """Whether this is the best validation so far; writes that into `state`."""
    value = record.metrics[train.best_metric]
    sign = -1.0 if train.best_metric.endswith("agreement") else 1.0
    known = state.best if state.best.get("metric") == train.best_metric else {}
    is_best = math.isfinite(value) and (not known or sign * value < sign * known["value"])
    if is_best:
        state.best = {"step": record.step, "metric": train.best_metric, "value": value}
    state.validations_without_gain = 0 if is_best else state.validations_without_gain + 1
    return is_best
