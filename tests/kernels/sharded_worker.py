"""What every rank of a tensor-parallel launch runs: one start-up, all cases, failures collected and named."""

import gc
import socket
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

Case = Callable[[dist.ProcessGroup], None]

# Each world size's shard boundaries over a vocabulary of 103: even-ish, one rank with one column, one with none.
VOCAB = 103
BOUNDS = {
    1: [[0, 103]],
    2: [[0, 52, 103], [0, 1, 103], [0, 103, 103]],
    4: [[0, 26, 52, 78, 103], [0, 60, 61, 61, 103], [0, 0, 50, 102, 103]],
}


def shard_of(bounds: list[int], rank: int) -> slice:
    """This rank's columns."""
    return slice(bounds[rank], bounds[rank + 1])


class CountedCollectives(TorchDispatchMode):
    """Counts every operation that reaches a process group in this thread, by name; backward runs in it too on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.counts[func._opname] += 1
        return func(*args, **(kwargs or {}))


def launch(cases: list[Case], world_size: int) -> None:
    """Runs the cases on ``world_size`` gloo processes and raises with every rank's failures."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    failures = mp.get_context("spawn").Queue()
    mp.spawn(_run, args=(world_size, port, cases, failures), nprocs=world_size)
    messages = [failures.get() for _ in range(world_size)]
    assert not any(messages), "\n".join(message for message in messages if message)


def _run(rank: int, world_size: int, port: int, cases: list[Case], failures: mp.Queue) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    assert dist.group.WORLD is not None
    messages = []
    for case in cases:
        try:
            case(dist.group.WORLD)
        except Exception:
            messages.append(f"rank {rank}, {case.__name__}:\n{traceback.format_exc()}")
    failures.put("\n".join(messages))
    # Seen with torch 2.13: a gloo group that is destroyed within milliseconds of asynchronous work aborts the process
    # at exit, one launch in eight, after all cases have passed.
    gc.collect()
    dist.barrier()
    time.sleep(0.2)
    dist.destroy_process_group()
