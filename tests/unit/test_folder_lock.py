"""Two runs in one folder, and locks that nobody holds any more."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from megaokd.checkpoint import folder_lock
from megaokd.checkpoint.folder_lock import LOCK_FILE, FolderLock
from megaokd.errors import UserError

MESH: Any = SimpleNamespace(saving=None)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(folder_lock, "BEAT_S", 0.05)
    monkeypatch.setattr(folder_lock, "_POLL_S", 0.05)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    folder = tmp_path / "run"
    first = FolderLock(folder, MESH)
    with pytest.raises(UserError, match=rf"another run is writing .* \(process {os.getpid()} on .*, Slurm job 17\)"):
        FolderLock(folder, MESH)
    first.release()
    second = FolderLock(folder, MESH)
    assert first.told == second.told == []
    second.release()


def test_a_lock_without_a_sign_of_life_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine that is gone leaves it on some shared file systems; whoever comes next is refused again."""
    monkeypatch.setattr(folder_lock, "STALE_S", 0.3)
    with (tmp_path / LOCK_FILE).open("w") as gone:
        gone.write("process 1 on nowhere")
        gone.flush()
        fcntl.flock(gone, fcntl.LOCK_EX)
        lock = FolderLock(tmp_path, MESH)
        assert lock.told == [f"the lock of {tmp_path} was left behind (process 1 on nowhere) and is taken over"]
        with pytest.raises(UserError, match="another run is writing"):
            FolderLock(tmp_path, MESH)
        lock.release()


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
    (text,) = FolderLock(tmp_path, MESH).told
    assert "cannot be locked (Function not implemented)" in text
