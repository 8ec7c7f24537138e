"""Starting real processes that form a gloo group, and collecting what they say."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile

from tests.support.forks import start_server

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
    return _run(command, timeout, environment())


def megaokd(
    *arguments: object, timeout: float = 600.0, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `megaokd` in a process of its own, without a launcher; `variables` replace the usual environment."""
    return _run([sys.executable, "-m", "megaokd.cli", *map(str, arguments)], timeout, variables or environment())


def forked(
    processes: int, *arguments: object, timeout: float = 600.0, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What `torchrun` does, or with no processes the interpreter alone, in forks of a process that has imported torch.

    It saves 4 s of CPU for each of them. For tests of what the processes compute and say; those of how they start, are
    interrupted and end take processes of their own.
    """
    address = _python_server()
    call = {"argv": ["python", *map(str, arguments)], "folder": str(ROOT)}
    call["variables"] = {**(variables or environment()), "FORKS_SOCKET": address}
    if processes:
        call["variables"]["FORKS_RANKS"] = str(processes)
    with socket.socket(socket.AF_UNIX) as connection, TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
        connection.settimeout(timeout)
        connection.connect(address)
        with open(os.devnull) as stdin, connection.makefile() as answer:
            streams = [file.fileno() for file in (stdin, stdout, stderr)]
            socket.send_fds(connection, [json.dumps(call).encode()], streams)
            group = int(answer.readline())
            try:
                status = int(answer.readline())
            except BaseException:
                os.killpg(group, signal.SIGKILL)
                raise
        stdout.seek(0), stderr.seek(0)
        return subprocess.CompletedProcess(arguments, status, stdout.read(), stderr.read())


@cache
def _python_server() -> str:
    """The address of a `python_server.py` that lives as long as this process."""
    server = ExitStack()
    atexit.register(server.close)
    return server.enter_context(start_server(ROOT / "tests" / "support" / "python_server.py"))


def broken_training(folder: Path, lines: str) -> Path:
    """A program that is `megaokd train` with something broken in it by `lines`, which find os, shutil and sys."""
    program = folder / "broken.py"
    program.write_text(
        f"import os, shutil, sys\n{lines}\nfrom megaokd.train_command import main\nsys.exit(main(sys.argv[1:]))\n"
    )
    return program


def start(*command: object) -> subprocess.Popen[str]:
    """Start a Python command in the checkout and return at once; its stderr is a pipe."""
    arguments = [sys.executable, *map(str, command)]
    return subprocess.Popen(arguments, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)


def start_ranks(processes: int, *command: object) -> list[subprocess.Popen[str]]:
    """Start the ranks of a group as Slurm does, each by itself: nobody ends the others when one dies."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    ranks = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        arguments = [sys.executable, *map(str, command)]
        variables = {**environment(), **address, **place}
        ranks.append(subprocess.Popen(arguments, cwd=ROOT, env=variables, stderr=subprocess.PIPE, text=True))
    return ranks


def environment() -> dict[str, str]:
    """What the processes of a test see: one thread each, the package from the checkout."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def _run(command: Sequence[str], timeout: float, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=timeout)


def must(result: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    """Fail with the output of a command that did not exit with 0."""
    assert result.returncode == 0, f"exit status {result.returncode}\n{result.stdout[-4000:]}\n{result.stderr[-8000:]}"
    return result
