"""SIGTERM, or Ctrl-C, as a request: the step in hand is finished, the run saved, then it ends."""

import signal
import sys
import time
from types import FrameType, TracebackType
from typing import Any

INSIST_AFTER_S = 2.0
"""A SIGINT so long after the first one is somebody who does not want to wait. Before that it is the same Ctrl-C, which
a terminal sends to all processes and torchrun sends to its own once more."""


class StopRequest:
    """Inside the context a signal only sets `requested`; ranks agree on the step in the step's own all-reduce.

    A second Ctrl-C is a `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self.requested = False
        self._first_interrupt: float | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._first_interrupt is None:
            self._first_interrupt = now
            print("megaokd: stopping after the work in hand; Ctrl-C once more ends it now", file=sys.stderr, flush=True)
        elif now - self._first_interrupt > INSIST_AFTER_S:
            raise KeyboardInterrupt
