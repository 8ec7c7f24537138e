"""All cells of one pair of models: values compared, then interleaved repetitions; as plain values."""

import dataclasses
import gc
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from megaokd.benchmark.measure import Clock
from megaokd.benchmark.sampling.constants import Constants, measure_constants
from megaokd.benchmark.sampling.predict import num_weights, predict_update, predict_writing
from megaokd.benchmark.sampling.updates import (
    CACHED,
    OKD,
    ON_POLICY,
    Cell,
    Timed,
    Update,
    configure,
    disagreement,
)
from megaokd.benchmark.step.world import World
from megaokd.errors import RunError
from megaokd.mesh import ParallelMesh, build_mesh, start_distributed
from megaokd.models.huggingface_config import read_architecture

UPDATES = (ON_POLICY, OKD, CACHED)


def measure_pair(
    world: World, cells: Sequence[Cell], repetitions: int, clock: Clock, say: Callable[[str], None]
) -> dict[str, Any]:
    """Everything that the report shows of a pair.

    Raises:
        RunError: an update does not do what it is measured for.
    """
    config = configure(OKD, world, 1)
    device = start_distributed(config.train.timeout_s)
    mesh = build_mesh(config.parallel, device)
    constants = measure_constants(world, device, clock)
    student, teacher = (num_weights(read_architecture(path)) for path in (world.student, world.teacher))
    rows = []
    for number, cell in enumerate(cells, start=1):
        rows.append(_measure(world, cell, mesh, repetitions, clock) | _predict(world, cell, constants, mesh))
        say(f"measured: cell {number} of {len(cells)}, batch {cell.rows}, response {cell.response}")
    pair = world.pair
    title = (
        f"teacher {pair.teacher.num_layers} x {pair.teacher.hidden_size}, student {pair.student.num_layers} x "
        f"{pair.student.hidden_size}: {teacher / 1e6:.1f}M -> {student / 1e6:.1f}M weights, vocabulary {pair.vocab}, "
        f"prompts of {pair.prompt}"
    )
    return {
        "title": title,
        "ratio": teacher / student,
        "constants": dataclasses.asdict(constants),
        "cells": rows,
    }


def _measure(world: World, cell: Cell, mesh: ParallelMesh, repetitions: int, clock: Clock) -> dict[str, Any]:
    updates = {name: Update(configure(name, cell.of(world), repetitions + 1), mesh, clock) for name in UPDATES}
    writing = updates[ON_POLICY]
    assert writing.writer is not None
    problem = disagreement(writing.writer, writing.run.train_batches.batch(0))
    if problem:
        raise RunError(f"benchmark: batch {cell.rows}, response {cell.response}: {problem}")
    steps: dict[str, list[Timed]] = {name: [] for name in UPDATES}
    for step in range(repetitions + 1):  # the first is for its values: it compiles what it compiles
        for name, update in updates.items():
            steps[name].append(update(step))
    check_values(steps, cell)
    timed = {name: found[1:] for name, found in steps.items()}
    del updates, writing
    gc.collect()
    return {
        "rows": cell.rows,
        "response": cell.response,
        "seconds": {name: [one.seconds for one in found] for name, found in timed.items()},
        "median": {name: statistics.median(one.seconds for one in found) for name, found in timed.items()},
        "writing": statistics.median(one.writing for one in timed[ON_POLICY]),
    }


def check_values(steps: dict[str, list[Timed]], cell: Cell) -> None:
    """A cache changes no value of any step, and every update has the cell's tokens.

    Raises:
        RunError: not so.
    """
    for ours, theirs in zip(steps[CACHED], steps[OKD], strict=True):
        if ours.values != theirs.values:
            raise RunError(f"benchmark: values with a cache differ: {ours.values} instead of {theirs.values}")
    for name, found in steps.items():
        for one in found:
            if one.values["loss tokens"] != cell.rows * cell.response:
                raise RunError(f"benchmark: {name} trains on {one.values['loss tokens']:.0f} tokens of {cell}")


def _predict(world: World, cell: Cell, constants: Constants, mesh: ParallelMesh) -> dict[str, Any]:
    overlaps = mesh.device.type == "cuda"
    writing = predict_writing(world, cell, constants, overlaps=overlaps)
    predicted = {name: predict_update(name, world, cell, constants, overlaps=overlaps) for name in UPDATES}
    return {"predicted": predicted, "predicted_writing": writing.total, "bound": writing.tokens.bound}
