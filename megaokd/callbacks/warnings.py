"""Warnings: checks of the numbers of a run, told to the other watchers, and not again and again."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from megaokd.callbacks.base import Callback, StepRecord, ValidationRecord
from megaokd.callbacks.checks import Check


class WarningGiver(Callback):
    """Runs the checks on every step and validation, and passes what they find on to `others`.

    The same warning is given again after `repeat_after` steps at the earliest. A resumed run is shown `past`, the lines
    of log.jsonl up to the step that it continues from: it remembers what was usual and what was told.
    """

    def __init__(
        self, checks: Sequence[Check], others: Callback, *, repeat_after: int, past: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self._checks, self._others, self._repeat_after = checks, others, repeat_after
        self._told: dict[str, int] = {}
        for line in past:
            if line["kind"] == "warning":
                self._told[line["warning"]] = line["step"]
            elif line["kind"] in ("train", "validation"):
                for check in checks:
                    check(line["step"], line)

    def on_step(self, record: StepRecord) -> None:
        self._look(record.step, record.scalars())

    def on_validation(self, record: ValidationRecord) -> None:
        self._look(record.step, record.metrics)

    def _look(self, step: int, values: Mapping[str, float]) -> None:
        for check in self._checks:
            warning = check(step, values)
            if warning is None:
                continue
            told = self._told.get(warning.kind)
            if told is None or step - told >= self._repeat_after:
                self._told[warning.kind] = step
                self._others.on_warning(warning)
