"""Checks of a run's numbers. Each sees every line of numbers and says in words what a person should act on.

They are given names and values as in log.jsonl, so that a resumed run can show them the lines of the run so far.
"""

from collections import deque
from collections.abc import Callable, Mapping
from statistics import median

from megaokd.callbacks.base import WarningRecord
from megaokd.config import Config, OptimizerGroup

Check = Callable[[int, Mapping[str, float]], WarningRecord | None]
"""(step, named values) -> a warning, if there is something to warn of now. Called in the order of steps."""
_NORMS, _FEWEST_NORMS = 100, 20
_WAITS = 50


def build_checks(config: Config) -> list[Check]:
    """Those that `logging.warnings` asks for."""
    options, checks = config.logging.warnings, list[Check]()
    if options.teacher_drift is not None:
        checks.append(DriftCheck(options.teacher_drift))
    if options.agreement_fall is not None:
        checks.append(AgreementCheck(options.agreement_fall))
    if options.gradient_spike is not None:
        checks.append(SpikeCheck("student", config.optimizer.student, options.gradient_spike))
        checks.append(SpikeCheck("online", config.optimizer.online, options.gradient_spike))
    if options.data_wait is not None:
        checks.append(DataWaitCheck(options.data_wait))
    return checks


class DriftCheck:
    """Whether the adapted teacher has left the original one."""

    def __init__(self, limit: float) -> None:
        self._limit = limit

    def __call__(self, step: int, values: Mapping[str, float]) -> WarningRecord | None:
        drift = values.get("validation/teacher_drift", 0.0)
        if drift <= self._limit:
            return None
        return WarningRecord(
            step,
            "teacher_drift",
            f"the adapted teacher is {drift:.3f} nats a token away from the original one, more than {self._limit:g}",
            "Look whether validation/teacher_ce has risen above validation/original_teacher_ce: if so, lower "
            "optimizer.online.lr, give objective.teacher more weight on ce, or add an anchor to it",
        )


class AgreementCheck:
    """Whether the student chooses the teacher's token less often than it once did."""

    def __init__(self, fall: float) -> None:
        self._fall = fall
        self._best = (0.0, 0)

    def __call__(self, step: int, values: Mapping[str, float]) -> WarningRecord | None:
        agreement = values.get("validation/top1_agreement")
        if agreement is None:
            return None
        highest, at = self._best
        self._best = max(self._best, (agreement, step))
        if agreement >= highest - self._fall:
            return None
        return WarningRecord(
            step,
            "agreement_fall",
            f"top-1 agreement with the teacher has fallen to {agreement:.3f}, from {highest:.3f} at step {at}",
            "If validation/student_ce has risen too, lower optimizer.student.lr, or set train.early_stopping; if "
            "validation/teacher_drift has risen, the teacher moves away from the student: lower optimizer.online.lr",
        )


class SpikeCheck:
    """Whether a group's gradient norm is far out of its usual range."""

    def __init__(self, group: str, options: OptimizerGroup, factor: float) -> None:
        self._group, self._options, self._factor = group, options, factor
        self._norms: deque[float] = deque(maxlen=_NORMS)

    def __call__(self, step: int, values: Mapping[str, float]) -> WarningRecord | None:
        norm = values.get(f"gradient_norm/{self._group}")
        if norm is None:
            return None
        usual = median(self._norms) if len(self._norms) >= _FEWEST_NORMS else 0.0
        self._norms.append(norm)
        if usual == 0.0 or norm <= self._factor * usual:
            return None
        section, clip = f"optimizer.{self._group}", self._options.clip
        clipped = f"It was clipped to {clip:g}" if clip else f"It was not clipped: set {section}.clip"
        return WarningRecord(
            step,
            f"gradient_spike/{self._group}",
            f"the gradient norm of the {self._group} group is {norm:.3g}, {norm / usual:.0f} times the median of its "
            f"last {len(self._norms) - (len(self._norms) < _NORMS)}",
            f"{clipped}. If spikes come often, lower {section}.lr or lengthen {section}.warmup_steps; if they come at "
            "single steps, look at the data",
        )


class DataWaitCheck:
    """Whether training waits for its data."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._times: deque[tuple[float, float]] = deque(maxlen=_WAITS)

    def __call__(self, step: int, values: Mapping[str, float]) -> WarningRecord | None:
        if "speed/data_seconds" not in values:
            return None
        self._times.append((values["speed/data_seconds"], values["speed/step_seconds"]))
        waited, whole = (sum(times) for times in zip(*self._times, strict=True))
        if len(self._times) < _WAITS or waited <= self._share * whole:
            return None
        return WarningRecord(
            step,
            "data_wait",
            f"{100 * waited / whole:.0f}% of the last {_WAITS} steps' time went into waiting for data ({waited:.1f} of "
            f"{whole:.1f} s)",
            "Put data.train on a disk of the machine, and leave memory free for the files that are read",
        )
