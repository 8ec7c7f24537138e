"""A function applied to a stream in several processes, results in the order of the stream, memory bounded."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

from megaokd.errors import UserError

Label = TypeVar("Label")
Task = TypeVar("Task")
Result = TypeVar("Result")

_AHEAD = 3  # tasks a worker that are read before their results are asked for


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class OrderedPool(Generic[Label, Task, Result]):
    """`build(argument)` makes the function once in each worker process; with one worker it runs here.

    A worker leaves when this process dies, however it dies. An exception of the function is raised here, at its place
    in the order.
    """

    def __init__(self, build: Callable[[Any], Callable[[Task], Result]], argument: Any, workers: int) -> None:
        self._build = build
        self._argument = argument
        self._workers = workers

    def map(self, tasks: Iterable[tuple[Label, Task]]) -> Iterator[tuple[Label, Result]]:
        """(label, result of its task), in order; a label stays in this process.

        Raises:
            UserError: a worker process was killed.
        """
        tasks = iter(tasks)
        first = list(islice(tasks, 2))  # workers are not worth starting for a single task
        if self._workers == 1 or len(first) < 2:
            function = self._build(self._argument)
            yield from ((label, function(task)) for label, task in chain(first, tasks))
            return
        pool = ProcessPoolExecutor(
            self._workers,
            multiprocessing.get_context("spawn"),  # a fork of a process with threads may hang
            initializer=_start_worker,
            initargs=(self._build, self._argument),
        )
        try:
            yield from self._results(pool, chain(first, tasks))
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; start the same command again to continue, "
                "with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _results(
        self, pool: ProcessPoolExecutor, tasks: Iterable[tuple[Label, Task]]
    ) -> Iterator[tuple[Label, Result]]:
        waiting: deque[tuple[Label, Future[Result]]] = deque()
        for label, task in tasks:
            waiting.append((label, pool.submit(_run, task)))
            if len(waiting) > _AHEAD * self._workers:
                label, future = waiting.popleft()
                yield label, future.result()
        while waiting:
            label, future = waiting.popleft()
            yield label, future.result()


_function: Callable[[Any], Any] | None = None  # of this worker process


def _start_worker(build: Callable[[Any], Callable[[Any], Any]], argument: Any) -> None:
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends the workers
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one core each
    _function = build(argument)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _run(task: Any) -> Any:
    assert _function is not None
    return _function(task)
