"""One run at a time writes checkpoints in a folder: two that continue from it would take each other's files away.

The kernel drops the lock with its process, however that ends. On a shared file system a machine that is gone may keep
it, for a lease or for ever; so the holder also touches the file, and one that no longer does has no claim: a job that
is started again must not wait for a person.
"""

import contextlib
import fcntl
import os
import socket
import threading
import time
from pathlib import Path
from typing import TextIO

from megaokd.agreement import from_main
from megaokd.errors import UserError
from megaokd.mesh import ParallelMesh

LOCK_FILE = "run.lock"
BEAT_S = 5.0
STALE_S = 120.0
"""More than a shared file system keeps a file's time from its other machines; NFS: 60 s by default."""
_POLL_S = 0.5


class FolderLock:
    """The lock of `folder`, made if needed, until `release`. Collective over `mesh.saving`: rank 0 holds it.

    `told`: what a user should know of it.

    Raises:
        UserError: on every rank: another run is there, or the folder cannot be written.
    """

    def __init__(self, folder: Path, mesh: ParallelMesh) -> None:
        self._file: TextIO | None = None
        self._released = threading.Event()
        self.told: list[str] = from_main(lambda: self._take(folder), mesh.saving)

    def release(self) -> None:
        """Leave the folder to others."""
        self._released.set()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, folder: Path) -> list[str]:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file, told = _wait_for(folder / LOCK_FILE)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}); choose another checkpoint.folder"
            ) from None
        if self._file is not None:
            job = os.environ.get("SLURM_JOB_ID")
            words = f"process {os.getpid()} on {socket.gethostname()}{f', Slurm job {job}' if job else ''}"
            os.ftruncate(self._file.fileno(), 0)
            with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
                os.write(self._file.fileno(), words.encode())
            threading.Thread(target=self._beat, args=(self._file.fileno(),), daemon=True).start()
        return told

    def _beat(self, descriptor: int) -> None:
        while not self._released.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(descriptor)


def _wait_for(path: Path) -> tuple[TextIO | None, list[str]]:
    """The locked file, None where there are no locks; and what to tell.

    Raises:
        UserError: its holder is alive.
    """
    found: tuple[int, int] | None = None
    told: list[str] = []
    deadline = time.monotonic() + STALE_S
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file, told
        except BlockingIOError:
            file.close()
        except OSError as error:
            file.close()
            return None, [f"{path.parent} cannot be locked ({error.strerror}): see that no other run is started in it"]
        holder = path.read_text(encoding="utf-8") or "a process that has just started"
        status = path.stat()
        now = (status.st_ino, status.st_mtime_ns)
        if (found := found or now) != now:
            raise UserError(
                f"{path.parent}: another run is writing checkpoints there ({holder}); wait for it or end it, or choose "
                "another checkpoint.folder"
            )
        if time.monotonic() > deadline:
            path.unlink(missing_ok=True)
            told.append(f"the lock of {path.parent} was left behind ({holder}) and is taken over")
        time.sleep(_POLL_S)
