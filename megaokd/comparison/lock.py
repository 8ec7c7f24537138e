"""One `megaokd compare` at a time works in a folder. The lock goes with its process, however that ends."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megaokd.errors import UserError

LOCK_FILE = "lock"


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, made if needed.

    Raises:
        UserError: another process holds it, or the folder cannot be written or its file system has no locks.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK_FILE).open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); give the recipe another folder") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "a process that has just started"
            raise UserError(
                f"{folder}: another comparison is running there ({holder}); wait for it, or give this recipe another "
                "folder"
            ) from None
        except OSError as error:
            raise UserError(f"{folder}: cannot be locked ({error.strerror}); give the recipe another folder") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
