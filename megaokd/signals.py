"""SIGTERM as a request: the step in hand is finished, the run saved, then it ends."""

import signal
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """Inside the context SIGTERM only sets `requested`; ranks agree on the step in the step's own all-reduce."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> "StopRequest":
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
