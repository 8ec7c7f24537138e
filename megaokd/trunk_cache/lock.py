"""One run at a time looks through a cache folder and adds to it; others wait. The lock goes with its process."""

import fcntl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from megaokd.agreement import from_main
from megaokd.errors import UserError

LOCK_FILE = "lock"
_POLL_S = 0.5


@contextmanager
def folder_lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of `folder`. Collective: rank 0 asks for it, a broadcast tells the others after each try.

    A wait may be long and is made of short collectives, so that none of them times out.

    Raises:
        UserError: on every rank, where the folder cannot be written or its file system has no locks.
    """
    with ExitStack() as stack:
        file: TextIO | None = None

        def try_to_lock() -> bool:
            nonlocal file
            try:
                file = file or stack.enter_context(_lock_file(folder))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError as error:
                message = f"teacher.cache: {folder} cannot be locked ({error.strerror}); choose another path"
                raise UserError(message) from None
            return True

        told = False
        while not from_main(try_to_lock):
            if not told:
                say(f"teacher.cache: another run is writing in {folder}; waiting for it")
                told = True
            time.sleep(_POLL_S)
        yield


def _lock_file(folder: Path) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / LOCK_FILE).open("w")
