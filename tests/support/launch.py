"""Starting real processes that form a gloo group, and collecting what they say."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def torchrun(processes: int, *arguments: object, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run `torchrun --standalone` with this interpreter from the checkout; the caller checks the exit status."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        *map(str, arguments),
    ]
    return _run(command, timeout)


def megaokd(*arguments: object, timeout: float = 600.0) -> subprocess.CompletedProcess[str]:
    """Run `megaokd` in a process of its own, without a launcher."""
    return _run([sys.executable, "-m", "megaokd.cli", *map(str, arguments)], timeout)


def _run(command: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


def must(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Fail with the output of a command that did not exit with 0."""
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}"
    return result
