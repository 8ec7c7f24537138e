"""Running a command of the project in processes of its own, its output passed on as it comes."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence

_MODULES = {"megaokd": "megaokd.cli", "torchrun": "torch.distributed.run"}
# torchrun's own account of a failed worker, a screenful that comes after the worker's words.
_LAUNCHER_REPORT = re.compile(r"^[EW]\d{4} .*torch/distributed/elastic/")


def run_command(command: Sequence[str], write: Callable[[str], None], num_lines: int = 20) -> tuple[int, str]:
    """Run `megaokd ...` or `torchrun ...` with this Python; returns its exit status and its last lines.

    When this process is interrupted meanwhile, the command is sent SIGTERM and waited for, up to its last words.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **_threads(command)}
    arguments = [sys.executable, "-m", _MODULES[command[0]], *command[1:]]
    tail = b""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment) as process:
        assert process.stdout is not None
        try:
            while chunk := os.read(process.stdout.fileno(), 65536):
                write(chunk.decode("utf-8", errors="replace"))
                tail = (tail + chunk)[-16384:]
        except BaseException:
            process.terminate()
            last_words, _ = process.communicate()  # read, as they may be more than a pipe holds
            write(last_words.decode("utf-8", errors="replace"))
            raise
    lines = tail.decode("utf-8", errors="replace").replace("\r", "\n").splitlines()
    launcher = next((number for number, line in enumerate(lines) if _LAUNCHER_REPORT.search(line)), None)
    return process.returncode, "\n".join(lines[:launcher][-num_lines:])


def shown_command(command: Sequence[str]) -> str:
    """The command as a user would type it."""
    return " ".join([*(f"{name}={value}" for name, value in _threads(command).items()), shlex.join(command)])


def _threads(command: Sequence[str]) -> dict[str, str]:
    """Several processes share the cores: a thread each."""
    return {"OMP_NUM_THREADS": "1"} if command[0] == "torchrun" else {}
