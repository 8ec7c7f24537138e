"""What is varied, everything else held: the points of each axis."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from megaokd.benchmark.growth.points import Point
from megaokd.benchmark.step.world import ModelSize, Pair
from megaokd.config import Parallel

Kind = Literal["growth", "layout", "bubble", "savings"]


@dataclass(frozen=True)
class Axis:
    """What its numbers are and what they must do."""

    name: str
    title: str
    kind: Kind
    law: str
    """Of time and of memory, in words."""
    note: str
    """What is held besides, or differs from the others."""
    make: Callable[[Pair], Sequence[Point]]


def _quarter(pair: Pair) -> int:
    return max(1, pair.teacher.num_layers // 4)


def _points(values: Mapping[int, Pair]) -> list[Point]:
    return [Point(f"{value}", pair, _quarter(pair), value) for value, pair in values.items()]


def _sequence(base: Pair) -> list[Point]:
    lengths = [base.sequence * factor // 2 for factor in (1, 2, 4, 8, 16)]
    one = replace(base, global_batch=base.micro_batch)
    return _points({length: replace(one, sequence=length) for length in lengths})


def _vocabulary(base: Pair) -> list[Point]:
    vocabularies = [base.vocab * factor // 4 for factor in (1, 4, 8, 16, 32)]
    return _points({vocab: replace(base, vocab=vocab) for vocab in vocabularies})


def _layers(base: Pair) -> list[Point]:
    def deeper(size: ModelSize, factor: float) -> ModelSize:
        return replace(size, num_layers=max(1, round(size.num_layers * factor)))

    pairs = [
        replace(base, teacher=deeper(base.teacher, factor), student=deeper(base.student, factor))
        for factor in (0.5, 1, 1.5, 2, 3)
    ]
    return _points({pair.teacher.num_layers: pair for pair in pairs})


def _micro_batches(base: Pair) -> list[Point]:
    return _points({count: replace(base, global_batch=count * base.micro_batch) for count in (1, 2, 4, 8, 16)})


def _tensor(base: Pair) -> list[Point]:
    return [Point(f"tp {n}", base, _quarter(base), n, Parallel(tensor=n)) for n in (1, 2, 4)]


def _pipeline(base: Pair) -> list[Point]:
    return [Point(f"pp {n}", base, _quarter(base), n, Parallel(pipeline=n)) for n in (1, 2, 4)]


def _bubble(base: Pair) -> list[Point]:
    """Modules in every layer and a small head, so that both stages have as much to do."""
    pair = replace(base, vocab=min(base.vocab, 512))
    return [
        Point(
            f"{count}",
            replace(pair, global_batch=count * pair.micro_batch),
            pair.teacher.num_layers,
            count,
            Parallel(pipeline=2),
        )
        for count in (2, 4, 8, 16)
    ]


PLAIN, RECOMPUTED = "one process", "one process, recomputed"
SPLIT, SPLIT_RECOMPUTED = "tp 2", "tp 2, recomputed"
SEQUENCE, SEQUENCE_RECOMPUTED = "tp 2, sequence-parallel", "tp 2, sequence-parallel, recomputed"


def _savings(base: Pair) -> list[Point]:
    """A micro-batch of the whole batch and modules in every layer: much is kept for backward."""
    pair = replace(base, micro_batch=base.global_batch)
    layouts = {
        PLAIN: Parallel(),
        RECOMPUTED: Parallel(recompute=True),
        SPLIT: Parallel(tensor=2),
        SPLIT_RECOMPUTED: Parallel(tensor=2, recompute=True),
        SEQUENCE: Parallel(tensor=2, sequence_parallel=True),
        SEQUENCE_RECOMPUTED: Parallel(tensor=2, sequence_parallel=True, recompute=True),
    }
    layers = pair.teacher.num_layers
    return [Point(name, pair, layers, parallel.tensor, parallel) for name, parallel in layouts.items()]


_TOP_QUARTER = "modules in the teacher's top quarter"
AXES = {
    axis.name: axis
    for axis in (
        Axis(
            "sequence", "Sequence length", "growth",
            "time: linear, and attention's quadratic part; memory: linear",
            f"one micro-batch a step; {_TOP_QUARTER}", _sequence,
        ),
        Axis("vocabulary", "Vocabulary", "growth", "time and memory: linear", _TOP_QUARTER, _vocabulary),
        Axis(
            "layers", "Layers of the teacher", "growth", "time and memory: linear",
            f"the student grows with it; {_TOP_QUARTER}", _layers,
        ),
        Axis(
            "micro-batches", "Micro-batches", "growth", "time: linear; memory: constant",
            _TOP_QUARTER, _micro_batches,
        ),
        Axis("tensor", "Tensor-parallel ranks", "layout", "time: a rank's share of FLOPs", _TOP_QUARTER, _tensor),
        Axis(
            "pipeline", "Pipeline ranks", "layout", "time: FLOPs of the slowest stage, M + P - 1 times",
            _TOP_QUARTER, _pipeline,
        ),
        Axis(
            "bubble", "Bubble of a pipeline of two", "bubble", "idle share: (P - 1) / (M + P - 1)",
            "modules in every layer and a vocabulary of at most 512, so that the stages are nearly alike", _bubble,
        ),
        Axis(
            "savings", "Recomputation and sequence parallelism", "savings",
            "bytes kept for backward and time of recomputation: as predicted",
            "all sequences in one micro-batch, modules in every layer", _savings,
        ),
    )
}  # fmt: skip
