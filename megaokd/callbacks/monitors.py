"""The numbers of log.jsonl, for DeepSpeed's monitors."""

from collections.abc import Callable, Mapping, Sequence

from megaokd.callbacks.base import Callback, StepRecord, ValidationRecord
from megaokd.engine.monitors import Event


class Monitors(Callback):
    """Hands names, values and steps on to `write`."""

    def __init__(self, write: Callable[[Sequence[Event]], None], every: int) -> None:
        self._write = write
        self._every = every

    def on_step(self, record: StepRecord) -> None:
        if record.step % self._every == 0 or record.step == record.total_steps:
            self._pass_on(record.scalars(), record.step)

    def on_validation(self, record: ValidationRecord) -> None:
        self._pass_on(record.metrics, record.step)

    def _pass_on(self, values: Mapping[str, float], step: int) -> None:
        self._write([(name, value, step) for name, value in values.items()])
