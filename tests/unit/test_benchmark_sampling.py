"""The benchmark of sampling: who does not do what it is measured for ends it; the model's limits; the page."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from megaokd.benchmark.sampling.constants import Constants
from megaokd.benchmark.sampling.gpu import Expected, expected
from megaokd.benchmark.sampling.grid import check_values, measure_pair
from megaokd.benchmark.sampling.predict import predict_update, training_calls
from megaokd.benchmark.sampling.report import write_report
from megaokd.benchmark.sampling.updates import CACHED, OKD, ON_POLICY, Cell, Timed, Update, configure, disagreement
from megaokd.benchmark.step.world import ModelSize, Pair, World, build_world
from megaokd.cost.decode import LAYER_CALLS, TOKEN_CALLS
from megaokd.errors import RunError
from megaokd.mesh import build_mesh, start_distributed
from megaokd.models.huggingface_config import read_architecture
from megaokd.sampling import on_policy

TINY = Pair(ModelSize(4, 64), ModelSize(2, 64), vocab=37, sequence=13, global_batch=2, micro_batch=2, prompt_tokens=6)
CELL = Cell(2, 8)
FREE = Constants(float("inf"), float("inf"), float("inf"), 0.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(TINY, tmp_path_factory.mktemp("world"), 1)


@pytest.fixture
def group() -> Iterator[None]:
    """A group of one in this process, which later tests must not find."""
    before = dict(os.environ)
    start_distributed(60)
    yield
    dist.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
@pytest.mark.usefixtures("group")
def test_a_pair(world: World, tmp_path: Path) -> None:
    measured = measure_pair(world, [CELL], 1, "cpu", lambda _: None)
    cell = measured["cells"][0]
    assert set(cell["median"]) == {ON_POLICY, OKD, CACHED}
    assert 0 < cell["writing"] < cell["median"][ON_POLICY]
    assert all(0 < value < float("inf") for value in measured["constants"].values())
    comparison = {"command": "megaokd", "environment": {}, **measured}
    write_report(tmp_path, comparison)
    page = write_report(tmp_path, comparison)
    assert page.count("## Teacher 4 x 64") == 1
    assert len(json.loads((tmp_path / "sampling.json").read_text())) == 1
    assert (tmp_path / "sampling.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.usefixtures("group")
def test_text_that_is_not_the_students_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(ON_POLICY, CELL.of(world), 1)
    update = Update(config, build_mesh(config.parallel, start_distributed(60)), "cpu")
    assert update.writer is not None
    batch = update.run.train_batches.batch(0)
    assert disagreement(update.writer, batch) == ""
    too_long = replace(update.writer, options=replace(update.writer.options, max_new_tokens=9))
    assert "responses have [8, 8] tokens instead of 9" in disagreement(too_long, batch)
    never = replace(update.writer, options=replace(update.writer.options, probability=0.0))
    assert disagreement(never, batch) == "the batch is the data's"
    monkeypatch.setattr(on_policy, "generate", lambda _, prompts, *__, **___: [[1] * 8 for _ in prompts])
    assert "of 16 greedy tokens are not the likeliest" in disagreement(update.writer, batch)


def test_values_that_differ_end_the_benchmark() -> None:
    def timed(loss: float, tokens: float = 16.0) -> Timed:
        return Timed(1.0, 0.5, {"student_loss": loss, "loss tokens": tokens})

    check_values({ON_POLICY: [timed(3.0)], OKD: [timed(1.0)], CACHED: [timed(1.0)]}, CELL)
    with pytest.raises(RunError, match="values with a cache differ"):
        check_values({ON_POLICY: [timed(3.0)], OKD: [timed(1.0)], CACHED: [timed(1.0 + 1e-12)]}, CELL)
    with pytest.raises(RunError, match="on-policy trains on 15 tokens"):
        check_values({ON_POLICY: [timed(3.0, 15.0)], OKD: [timed(1.0)], CACHED: [timed(1.0)]}, CELL)


def test_a_prediction_is_made_of_its_parts(world: World) -> None:
    def seconds(name: str, **constants: float) -> float:
        return predict_update(name, world, CELL, replace(FREE, **constants), overlaps=False)

    assert seconds(OKD) == 0.0
    only_calls = {name: seconds(name, call_s=1.0) for name in (ON_POLICY, OKD, CACHED)}
    layer, token = LAYER_CALLS["fp32"], TOKEN_CALLS["fp32"]
    writing = CELL.response * (2 * layer + token)  # the prompts' pass and 7 of a token
    assert only_calls[ON_POLICY] == (2 + 4 + 2 * 2) * layer + 3 * token + writing
    assert only_calls[OKD] == (2 + 4 + 2 * 3) * layer + 3 * token
    assert only_calls[OKD] - only_calls[CACHED] == 3 * layer
    # With free calls and the same writing, what is left of both is arithmetic: modules and the cache show in it.
    teacher = {name: seconds(name, teacher_flops=1.0) for name in (ON_POLICY, OKD, CACHED)}
    assert teacher[CACHED] < teacher[ON_POLICY] < teacher[OKD]
    student, big = read_architecture(world.student), read_architecture(world.teacher)
    assert training_calls(student, big, moving=0, cached=0, precision="bf16") > training_calls(
        student, big, moving=0, cached=0
    )


def test_what_a_gpu_is_expected_to_do() -> None:
    found = {(one.pair[:3], one.rows, one.response): one for one in expected()}

    def ratios(one: Expected) -> list[float]:
        return [one.uncached, one.cached, one.uncached_graphs, one.cached_graphs]

    few, many = found["70B", 1, 512], found["70B", 128, 512]
    assert few.bound == "calls"
    assert few.bound_graphs == "collectives"
    assert all(x > y for x, y in zip(ratios(few), ratios(many), strict=True)), "a batch shares the latency"
    assert all(x > y for x, y in zip(ratios(few), ratios(found["70B", 1, 64]), strict=True))
    for one in found.values():
        assert one.cached > one.uncached > one.uncached_graphs * 0.9
