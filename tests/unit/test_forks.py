"""Ranks that are forked fail as those of torchrun do: nothing is waited for in vain, nothing passes unseen."""

import os
import time
from pathlib import Path

import pytest

from tests.support.launch import forked


def program(folder: Path, lines: str) -> Path:
    file = folder / "program.py"
    file.write_text(f"import os, sys, time\nrank = os.environ.get('RANK')\n{lines}\n")
    return file


def test_a_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    waiting = f"open({str(tmp_path / 'other')!r}, 'w').write(str(os.getpid())); time.sleep(300)"
    lines = f"if rank == '0':\n    {waiting}\ntime.sleep(0.5)\nraise ValueError(f'rank {{rank}} of {{sys.argv[1]}}')"
    result = forked(2, program(tmp_path, lines), "two", timeout=60)
    assert result.returncode == 1
    assert "ValueError: rank 1 of two" in result.stderr
    assert not alive(int((tmp_path / "other").read_text()))


def test_status_signal_and_words_come_back(tmp_path: Path) -> None:
    for lines, status in (("sys.exit(75)", 75), ("os.kill(os.getpid(), 9)", -9), ("assert rank is None", 0)):
        result = forked(0, program(tmp_path, f"print('said', flush=True)\n{lines}"))
        assert (result.returncode, result.stdout) == (status, "said\n")


def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    lines = f"open({str(tmp_path)!r} + '/' + rank, 'w').write(str(os.getpid()))\ntime.sleep(300)"
    with pytest.raises(TimeoutError):
        forked(2, program(tmp_path, lines), timeout=2.0)
    assert not any(alive(int((tmp_path / rank).read_text())) for rank in "01")


def alive(process: int) -> bool:
    """Whether it runs a second later."""
    time.sleep(1)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().split(") ")[1][0] != "Z"
