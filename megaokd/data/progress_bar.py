"""What a person sees while data is tokenized."""

import io
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from megaokd.data.journal import Progress

LINE_SECONDS = 60.0
"""Between two lines of a log."""


class ProgressBar:
    """On stderr: a bar where there is a terminal, a line a minute where there is none.

    It counts bytes, with the time left, or records where the size of an input is not known.

    Args:
        sizes: bytes of each input, None where they are not known.
        progress: how far the job is when it begins.
        shown: False for a job that says nothing.
    """

    def __init__(self, sizes: Sequence[int | None], progress: Progress, *, shown: bool) -> None:
        known = [size for size in sizes if size is not None]
        self._in_bytes = len(known) == len(sizes)
        self._shown = shown
        self._interactive = sys.stderr.isatty()
        self._told_at = time.monotonic()
        # Without a terminal the bar draws into the void and is printed as a line now and then.
        self._bar = tqdm(
            total=sum(known) if self._in_bytes else None,
            initial=self._done(progress),
            desc="tokenizing",
            unit="B" if self._in_bytes else " records",
            unit_scale=True,
            mininterval=0.5,
            file=sys.stderr if self._interactive else io.StringIO(),
            disable=not shown,
        )

    def show(self, progress: Progress) -> None:
        """The job is so far now."""
        if not self._shown:
            return
        self._bar.set_postfix(tokens=progress.num_tokens, malformed=progress.num_malformed, refresh=False)
        self._bar.update(self._done(progress) - self._bar.n)
        if not self._interactive and time.monotonic() - self._told_at >= LINE_SECONDS:
            print(self._bar, file=sys.stderr, flush=True)
            self._told_at = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def _done(self, progress: Progress) -> float:
        return progress.done if self._in_bytes else sum(progress.records)
