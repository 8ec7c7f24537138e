"""All watchers of a run as one."""

import contextlib
from collections.abc import Callable, Sequence

from megaokd.callbacks.base import Callback, CheckpointRecord, StepRecord, ValidationRecord, WarningRecord
from megaokd.errors import RunError


class FanOut(Callback):
    """Passes everything on to each; one that cannot write ends the run with a sentence."""

    def __init__(self, watchers: Sequence[Callback]) -> None:
        self._watchers = list(watchers)

    def on_step(self, record: StepRecord) -> None:
        self._tell_each(lambda watcher: watcher.on_step(record))

    def on_validation(self, record: ValidationRecord) -> None:
        self._tell_each(lambda watcher: watcher.on_validation(record))

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        self._tell_each(lambda watcher: watcher.on_checkpoint(record))

    def on_warning(self, record: WarningRecord) -> None:
        self._tell_each(lambda watcher: watcher.on_warning(record))

    def on_message(self, text: str) -> None:
        self._tell_each(lambda watcher: watcher.on_message(text))

    def close(self) -> None:
        for watcher in self._watchers:
            with contextlib.suppress(OSError):  # told already, by the write that met it
                watcher.close()

    def _tell_each(self, tell: Callable[[Callback], None]) -> None:
        try:
            for watcher in self._watchers:
                tell(watcher)
        except OSError as error:
            raise RunError(f"the logs cannot be written ({error.strerror}); make room in checkpoint.folder") from error
