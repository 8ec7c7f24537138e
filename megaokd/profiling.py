"""Traces of chosen steps by torch's profiler, one file a rank, for chrome://tracing or ui.perfetto.dev."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from megaokd.errors import RunError

PROFILE_FOLDER = "profile"


class StepProfiler:
    """Records the steps of a window on this rank and writes FOLDER/steps-START-LAST.rankN.json when it has passed.

    steps: numbered from 1, as in the logs; empty: nothing is recorded. say: is told once where the traces are.
    """

    def __init__(self, steps: range, folder: Path, rank: int, say: Callable[[str], None]) -> None:
        self._steps = steps
        self._folder = folder
        self._rank = rank
        self._say = say
        self._profile: profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a step. No collective; recording slows the step down.

        Raises:
            RunError: the trace cannot be written.
        """
        if number not in self._steps:
            yield
            return
        if self._profile is None:
            self._profile = profile(activities=_activities())
            self._profile.start()
        with record_function(f"step {number}"):
            yield
        if number == self._steps[-1]:
            self.close()

    def close(self) -> None:
        """Write what was recorded, also where the run ended within the window."""
        if self._profile is None:
            return
        self._profile.stop()
        path = self._folder / f"steps-{self._steps[0]}-{self._steps[-1]}.rank{self._rank}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(path))
        except OSError as error:
            raise RunError(f"{path}: the trace of train.profile cannot be written ({error.strerror})") from error
        finally:
            self._profile = None
        self._say(f"train.profile: traces of steps {self._steps[0]} to {self._steps[-1]} are in {self._folder}")


def _activities() -> list[ProfilerActivity]:
    on_device = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    return [ProfilerActivity.CPU, *on_device]
