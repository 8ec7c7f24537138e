"""All watchers of a run as one."""

import contextlib
from collections.abc import Iterator, Sequence

from megaokd.callbacks.base import Callback, CheckpointRecord, StepRecord, ValidationRecord
from megaokd.errors import RunError


class FanOut(Callback):
    """Passes everything on to each; one that cannot write ends the run with a sentence."""

    def __init__(self, watchers: Sequence[Callback]) -> None:
        self._watchers = list(watchers)

    def on_step(self, record: StepRecord) -> None:
        with _told():
            for watcher in self._watchers:
                watcher.on_step(record)

    def on_validation(self, record: ValidationRecord) -> None:
        with _told():
            for watcher in self._watchers:
                watcher.on_validation(record)

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        with _told():
            for watcher in self._watchers:
                watcher.on_checkpoint(record)

    def on_message(self, text: str) -> None:
        with _told():
            for watcher in self._watchers:
                watcher.on_message(text)

    def close(self) -> None:
        for watcher in self._watchers:
            with contextlib.suppress(OSError):  # told already, by the write that met it
                watcher.close()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"the logs cannot be written ({error.strerror}); make room in checkpoint.folder") from error
