"""Whatever ends a run, all its processes end, one sentence says why, and the next start continues from a checkpoint.

The ranks are started without a launcher, which would end the others itself as soon as one has died.
"""

import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.distributed.fault_worker import STANDING
from tests.distributed.test_runs import losses, wait_for_step
from tests.support.launch import ROOT, start_ranks
from tests.support.tiny import TinyWorld

WORKER = ROOT / "tests" / "distributed" / "fault_worker.py"
KILLED = -signal.SIGKILL
OPTIONS = {"train": {"steps": 12, "resume": "auto", "lost_rank_s": 3}, "checkpoint": {"every": 2, "keep_last": 3}}


@dataclass
class Ended:
    """How the ranks of a run ended."""

    statuses: list[int]
    errors: list[str]

    @classmethod
    def of(cls, ranks: list[subprocess.Popen[str]], timeout: float = 60) -> "Ended":
        errors = [rank.communicate(timeout=timeout)[1] for rank in ranks]
        return cls([rank.returncode for rank in ranks], errors)

    def sentence(self, rank: int) -> str:
        """The one line that a rank says about its end, with no traceback around it."""
        lines = [line for line in self.errors[rank].splitlines() if line.startswith("megaokd:")]
        assert len(lines) == 1, self.errors[rank]
        assert "Traceback" not in self.errors[rank]
        return lines[0]


@dataclass
class FaultyRun:
    """A run of two data-parallel ranks in one folder, started again and again."""

    folder: Path
    config: Path

    def start(self, fault: str = "none", ranks: str = "", step: int = 0, *more: object) -> list[subprocess.Popen[str]]:
        return start_ranks(2, WORKER, fault, ranks, step, self.config, *more)

    def checkpoints(self) -> list[str]:
        return sorted(path.name.replace("step-000000", "") for path in (self.folder / "checkpoints").iterdir())


def prepare(world: TinyWorld, root: Path, folder: Path) -> FaultyRun:
    config = root / "run.yaml"
    config.write_text(yaml.safe_dump(world.config(folder, **OPTIONS)))
    return FaultyRun(folder, config)


def wait_for_folder(process: subprocess.Popen[str], folder: Path) -> None:
    deadline = time.monotonic() + 120
    while not folder.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, f"{folder} was not made"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[float, ...]]:
    """Losses and norms of the same two ranks without any fault."""
    root = tmp_path_factory.mktemp("undisturbed")
    run = prepare(tiny_world, root, root / "run")
    ended = Ended.of(run.start())
    assert ended.statuses == [0, 0], ended.errors
    return losses(run.folder)


def test_kills(tiny_world: TinyWorld, undisturbed: dict[int, tuple[float, ...]], tmp_path: Path) -> None:
    run = prepare(tiny_world, tmp_path, tmp_path / "run")

    # One rank, in the middle of its file.
    ended = Ended.of(run.start("half-a-file", "1", 4))
    assert ended.statuses == [1, KILLED]
    assert "rank 1 (" in ended.sentence(0)
    assert "has given no sign of life for 3 s" in ended.sentence(0)
    assert run.checkpoints() == ["02", "04.tmp"]

    # All ranks, when all is written but not renamed.
    ranks = run.start("before-rename", "0", 6)
    wait_for_folder(ranks[0], run.folder / STANDING)
    for rank in ranks:
        rank.kill()
    assert Ended.of(ranks).statuses == [KILLED, KILLED]
    assert run.checkpoints() == ["02", "04", "06.tmp"]

    # A rank that hangs, the one that the others listen to: its connections stay, and no collective fails.
    ranks = run.start()
    wait_for_step(ranks[0], run.folder, 9)
    ranks[0].send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    ended = Ended.of(ranks[1:])
    ranks[0].kill()
    ranks[0].communicate()
    assert ended.statuses == [1]
    assert time.monotonic() - stopped < 20
    assert "rank 0" in ended.sentence(0)

    # A flipped byte in the newest: the one before is taken.
    newest = [name for name in run.checkpoints() if "." not in name][-1]
    shard = next((run.folder / "checkpoints" / f"step-000000{newest}").glob("shard-00002*"))
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    ended = Ended.of(run.start())
    assert ended.statuses == [0, 0], ended.errors
    assert "has another checksum" in (run.folder / "log.jsonl").read_text()
    assert f"{newest}.damaged" in run.checkpoints()
    assert losses(run.folder) == undisturbed


def test_full_disk(tiny_world: TinyWorld, undisturbed: dict[int, tuple[float, ...]], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=900k", "none", str(disk))
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"{' '.join(mount)}: {mounted.stderr.strip()}")
    try:
        run = prepare(tiny_world, tmp_path, disk / "run")
        ended = Ended.of(run.start())
        assert ended.statuses == [1, 1]
        for rank in (0, 1):
            assert "No space left on device" in ended.sentence(rank)
        subprocess.run(("mount", "-o", "remount,size=20m", str(disk)), check=True)
        ended = Ended.of(run.start())
        assert ended.statuses == [0, 0], ended.errors
        assert losses(run.folder) == undisturbed
    finally:
        subprocess.run(("umount", str(disk)), check=True)
