"""Processes without the seconds of an import each: one imports torch and the like, and forks for every call.

A call is a line of JSON (`argv`, `folder`, `variables`) with the caller's stdin, stdout and stderr. The first line of
the answer is the group of processes that does the work, by which it can be ended; the second is its exit status.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
Call = dict[str, Any]


@contextmanager
def start_server(program: Path) -> Iterator[str]:
    """Run a program that calls `serve`; gives the address. It ends with the context, or with this process."""
    with tempfile.TemporaryDirectory() as short:  # the path of a socket has little room
        address = f"{short}/socket"
        variables = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen([sys.executable, program, address], env=variables, text=True, **pipes) as server:
            try:
                assert server.stdout is not None
                assert "ready\n" in iter(server.stdout.readline, "")
                yield address
            finally:
                server.kill()


def write_stand_in(path: Path) -> None:
    """A command that is called `path.name` and whose calls go to the server at FORKS_SOCKET."""
    path.write_text(f'#!/bin/sh\nFORKS_COMMAND={path.name} exec {sys.executable} -S -E {HERE / "stand_in.py"} "$@"\n')
    path.chmod(0o755)


def serve(address: str, work: Callable[[Call], int]) -> None:
    """Answer calls with `work`, each in a process of its own, several at a time, until stdin is closed."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(connection, work)
            connection.close()


def _answer(connection: socket.socket, work: Callable[[Call], int]) -> NoReturn:
    """Do what one call asks for, in this process and those that it forks, and send the status."""
    os.setpgrp()
    message, streams, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    call = json.loads(message)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    connection.sendall(f"{os.getpid()}\n".encode())
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["variables"])
    status = 1
    try:
        status = work(call)
    except BaseException:
        traceback.print_exc()
    connection.sendall(f"{status}\n".encode())
    os._exit(0)


def fork(work: Callable[[], int], variables: dict[str, str]) -> int:
    """Start `work` in a child; its process id."""
    child = os.fork()
    if child:
        return child
    os.environ.update(variables)
    status = 1
    try:
        status = int(work())
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait_for(child: int) -> int:
    """The exit status of a child."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_ranks(work: Callable[[], int], processes: int) -> int:
    """`work` in every rank of a group: 0, or 1 when a rank ended otherwise, with which the others end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "OMP_NUM_THREADS": "1"}
    running = {
        fork(work, {**address, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)})
        for rank in range(processes)
    }
    failed = False
    while running:
        child, status = os.wait()
        running.discard(child)
        if status and not failed:
            failed = True
            for other in running:
                os.kill(other, signal.SIGKILL)
    return int(failed)
