"""Time and peak memory of alternatives that do the same work, in one run."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

Clock = Literal["wall", "cpu"]
CLOCKS: Mapping[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds that pass, or those that this process spends on a CPU: the same on a busy machine."""
Gradients = tuple[Tensor, ...]
Call = Callable[[], tuple[Tensor, Gradients]]


@dataclass
class Row:
    """One way to get a loss and its gradients. A row that did not agree with the reference has `refused` set."""

    name: str
    call: Call  # -> summed loss, gradients
    seconds: list[float] = field(default_factory=list)
    extra_bytes: int = 0  # peak beyond inputs and returned gradients
    refused: str = ""

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, relative to the median."""
        if len(self.seconds) < 2:
            return 0.0
        quartiles = statistics.quantiles(self.seconds, n=4)
        return (quartiles[2] - quartiles[0]) / 2 / self.median


def synchronize(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(
    rows: Sequence[Row], repetitions: int, device: torch.device, group: dist.ProcessGroup | None = None
) -> None:
    """Every row once for its memory (and to warm up), then all rows in turn, `repetitions` times.

    With a group the ranks start each call together; what a rank waits for the others within it counts.
    """
    for row in rows:
        row.extra_bytes = peak_bytes(row.call, device)
    for _ in range(repetitions):
        for row in rows:
            synchronize(device)
            if group is not None:
                dist.barrier(group)
            start = time.perf_counter()
            row.call()
            synchronize(device)
            row.seconds.append(time.perf_counter() - start)


def agreeing(rows: Sequence[Row], group: dist.ProcessGroup | None = None) -> list[Row]:
    """The rows that no rank refuses: the ranks must measure the same ones, or they would wait for each other."""
    refused = torch.tensor([bool(row.refused) for row in rows], dtype=torch.int32)
    if group is not None:
        dist.all_reduce(refused, group=group)
    return [row for row, wrong in zip(rows, refused.tolist(), strict=True) if not wrong]


def peak_bytes(call: Call, device: torch.device) -> int:
    """Most bytes that torch's allocator held at a time beyond what was there before and the gradients returned.

    On the CPU from the allocator's events, which the profiler records: exact, whatever the C library keeps back.
    Buffers that a library allocates for itself (a matrix product's packing) are not among them.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = call()[1]
        return torch.cuda.max_memory_allocated(device) - before - _bytes(kept)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = call()[1]
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak - _bytes(kept)


def _bytes(tensors: Gradients) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)
