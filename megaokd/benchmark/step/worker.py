"""A process for each contender: nothing of one is in another's memory, and the parent says who makes a step when.

Between its steps a process sleeps at a pipe, so interleaved repetitions cost only the one that steps.
"""

import gc
import importlib
import multiprocessing
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from megaokd.benchmark.measure import CLOCKS, Clock, peak_bytes, synchronize
from megaokd.benchmark.step.operators import operator_shares
from megaokd.errors import RunError, UserError

_STATUS = Path("/proc/self/status")


class Step(Protocol):
    """Makes the step of that number; returns what it measured, equal names meaning equal things everywhere."""

    def __call__(self, step: int) -> dict[str, float]: ...


@dataclass
class Measured:
    """What one step told."""

    seconds: float
    values: dict[str, float]
    phases: dict[str, float]


@dataclass
class Contender:
    """One way to make a step: `build`, a function "module:name", is called with `arguments` in its own process."""

    name: str
    build: str
    arguments: Mapping[str, Any]
    libraries: Sequence[str] = ()
    """Imported first: their code is not counted as memory of the step."""
    clock: Clock = "wall"
    refused: str = ""
    process_bytes: int = 0
    """Most memory of a step beyond what the process had before its models were built."""
    tensor_bytes: int = 0
    """Most bytes that tensors held at a time in a step, weights and optimizer state among them."""
    operators: dict[str, float] = field(default_factory=dict)
    """See `operator_shares`."""
    steps: list[Measured] = field(default_factory=list)
    """In order; the first is for its values."""


class Worker:
    """The process of a contender."""

    def __init__(self, contender: Contender) -> None:
        context = multiprocessing.get_context("spawn")
        self.contender = contender
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, contender))
        self._process.start()
        theirs.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(timeout=30)
        if self._process.is_alive():
            self._process.kill()

    def ready(self) -> str:
        """Wait until it is built; why it could not be, or nothing."""
        reason: str = self._receive()
        return reason

    def begin(self, number: int) -> None:
        """Let it make a step."""
        self._pipe.send(("step", number))

    def finish(self) -> None:
        """Wait for the step, and note it."""
        self.contender.steps.append(self._receive())

    def measure_memory(self, number: int) -> None:
        """Note the peaks: the process's since its first step, and that of tensors in one more step of that number."""
        self.begin_memory(number)
        self.finish_memory()

    def begin_memory(self, number: int) -> None:
        """Let it make that step."""
        self._pipe.send(("memory", number))

    def finish_memory(self) -> None:
        """Wait for the peaks, and note them."""
        self.contender.process_bytes, self.contender.tensor_bytes = self._receive()

    def measure_operators(self, number: int) -> None:
        """Note the share of each kind of operator in one more step of that number."""
        self._pipe.send(("operators", number))
        self.contender.operators = self._receive()

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RunError(f"benchmark: the process of {self.contender.name} ended; its message is above") from None


def _serve(pipe: Connection, contender: Contender) -> None:
    torch.set_num_threads(1)
    module, name = contender.build.split(":")
    try:
        make: Callable[..., Step] = getattr(importlib.import_module(module), name)
        for library in contender.libraries:
            importlib.import_module(library)
        before = resident_bytes()
        step = make(**contender.arguments)
    except Exception as error:  # an import of a peer may fail in any way: it is reported, not measured
        pipe.send(f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
        return
    pipe.send("")
    gc.collect()
    while True:
        try:
            command, number = pipe.recv()
        except EOFError:
            return
        if command == "step":
            pipe.send(_timed(step, number, CLOCKS[contender.clock]))
            if number == 0:  # compiling takes memory, and so does reading models
                gc.collect()
                _forget_peak()
        elif command == "operators":
            pipe.send(operator_shares(partial(step, number)))
        else:
            process = _peak_bytes() - before
            pipe.send((process, _live_bytes() + peak_bytes(partial(_quietly, step, number), _device())))


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _timed(step: Step, number: int, now: Callable[[], float]) -> Measured:
    device = _device()
    synchronize(device)
    start = now()
    values = step(number)
    synchronize(device)
    seconds = now() - start
    clock = getattr(step, "clock", None)
    return Measured(seconds, values, {} if clock is None else dict(clock.seconds))


def _quietly(step: Step, number: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The step in the form that `peak_bytes` calls: nothing is kept of it."""
    step(number)
    return torch.empty(0), ()


def _live_bytes() -> int:
    """Of all tensors that there are, each storage once."""
    gc.collect()
    found = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in found if not one.is_meta}
    return sum(storages.values())


def resident_bytes() -> int:
    """Memory of this process; on a GPU, of its tensors there."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def _peak_bytes() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _status("VmHWM")


def _forget_peak() -> None:
    """From here on the peak is that of what comes: reading models may have held more."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def check_system() -> None:
    """Peaks of memory are read where Linux keeps them.

    Raises:
        UserError: another system.
    """
    if sys.platform != "linux":
        raise UserError("megaokd benchmark step reads the peak of each process's memory from /proc: it needs Linux")
