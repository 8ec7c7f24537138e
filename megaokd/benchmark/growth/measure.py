"""Steps of an axis's points in turn, and what they told as plain values."""

import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from megaokd.benchmark.growth.axes import Axis
from megaokd.benchmark.growth.points import Point, Prediction
from megaokd.benchmark.growth.ranks import SHARED, RankGroup
from megaokd.benchmark.step.world import Pair, World, build_world

NUM_BATCHES = 4
TOLERANCE = 1e-5
"""Relative, of the first step's values where points differ by their layout alone."""


def measure_axis(axis: Axis, base: Pair, repetitions: int) -> list[dict[str, Any]]:
    """Each point of the axis; those that need more processes than there are cores are not timed."""
    points = axis.make(base)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as processes:
        worlds = _worlds(points, Path(folder))
        groups = [RankGroup(point, worlds[point.pair], processes) for point in points]
        for group in groups:
            group.ready()
        _run(groups, repetitions, axis.name)
        predictions = [Prediction.of(point, worlds[point.pair], on_gpu=torch.cuda.is_available()) for point in points]
        found = [_values(group, prediction) for group, prediction in zip(groups, predictions, strict=True)]
    for point, values in zip(points, found, strict=True):
        reference = found[0] if point.pair == points[0].pair else values
        values["refused"] = disagreement(values["shared"], reference["shared"])
    return found


def _worlds(points: Sequence[Point], folder: Path) -> dict[Pair, World]:
    """Models and data of each pair, once."""
    worlds = {}
    for number, pair in enumerate(dict.fromkeys(point.pair for point in points)):
        root = folder / str(number)
        root.mkdir()
        worlds[pair] = build_world(pair, root, NUM_BATCHES)
    return worlds


def _run(groups: Sequence[RankGroup], repetitions: int, name: str) -> None:
    timed = [group for group in groups if is_timed(group.point)]
    for group in groups:  # compiles what it compiles
        group.step(0)
    for step in range(1, repetitions + 1):
        for group in timed:
            group.step(step)
        print(f"{name}: repetition {step} of {repetitions}", file=sys.stderr, flush=True)
    for group in groups:
        group.measure_memory(repetitions + 1)


def is_timed(point: Point) -> bool:
    """Whether each of its processes has a device, or a core, of its own."""
    places = torch.cuda.device_count() if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    return point.processes <= places


def _values(group: RankGroup, prediction: Prediction) -> dict[str, Any]:
    """Of a step the slowest rank's time, of memory the largest rank's; seconds, bytes, FLOPs."""
    first, *timed = group.steps()
    about = first[0].values
    seconds = [max(rank.seconds for rank in step) for step in timed]
    values = {
        "name": group.point.name,
        "value": group.point.value,
        "processes": group.point.processes,
        "seconds": seconds,
        "median": statistics.median(seconds) if seconds else None,
        "tensor_bytes": max(rank.tensor_bytes for rank in group.ranks),
        "process_bytes": max(rank.process_bytes for rank in group.ranks),
        "kept_bytes": {name: int(about[f"kept by {name}"]) for name in ("student", "teacher")},
        "shared": {name: about[name] for name in SHARED},
        "predicted": {
            "flops": prediction.step.total,
            "forward": prediction.forward,
            "repeated": prediction.repeated,
            "critical": prediction.critical,
            "bubble": prediction.bubble,
            "idle": prediction.idle,
            "tensor_bytes": prediction.peak_bytes,
            "kept_bytes": prediction.kept_bytes,
        },
    }
    if group.point.parallel.pipeline > 1 and timed:
        values["idle"] = [idle_share([(rank.values["busy"], rank.values["span"]) for rank in step]) for step in timed]
    return values


def idle_share(ranks: Sequence[tuple[float, float]]) -> float:
    """Of the ranks' time in a pipeline; of each its seconds of work, and those of its schedule.

    They begin together, so the longest schedule is the pipeline's.
    """
    return 1 - sum(busy for busy, _ in ranks) / (len(ranks) * max(span for _, span in ranks))


def disagreement(found: Mapping[str, float], expected: Mapping[str, float]) -> str:
    """The first value of a step that is not the one expected, or nothing."""
    for name, value in expected.items():
        if not abs(found[name] - value) <= TOLERANCE * abs(value):
            return f"{name} is {found[name]:.9g} instead of {value:.9g}"
    return ""
