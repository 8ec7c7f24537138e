"""The benchmark of growth: fits, verdicts, idle shares; one small axis measured by real processes."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megaokd.benchmark.growth.axes import AXES
from megaokd.benchmark.growth.checks import checks
from megaokd.benchmark.growth.fit import Line, exponent
from megaokd.benchmark.growth.measure import disagreement, idle_share, measure_axis
from megaokd.benchmark.growth.points import Prediction
from megaokd.benchmark.growth.report import write_report
from megaokd.benchmark.growth_command import AXES_BY_NAME
from megaokd.benchmark.step.world import ModelSize, Pair, build_world

TINY = Pair(ModelSize(4, 256), ModelSize(4, 256), vocab=64, sequence=32, global_batch=4, micro_batch=1)


def test_a_line_and_an_exponent() -> None:
    line = Line.through([1e12, 2e12, 4e12], [3.0, 5.0, 9.0])
    assert (line.offset, line.slope) == (pytest.approx(1.0), pytest.approx(2e-12))
    assert line.worst < 1e-12
    assert line(3e12) == pytest.approx(7.0)
    assert Line.through([1, 2, 4, 8], [1, 4, 16, 64]).worst > 0.5
    assert exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2.0)
    assert exponent([1, 2, 4], [7, 7, 7]) == pytest.approx(0.0)


def point(value: int, seconds: float, size: int, *, flops: float, planned: int) -> dict[str, Any]:
    predicted = {"flops": flops, "tensor_bytes": planned, "critical": flops, "bubble": 1 / 3}
    return {
        "name": str(value),
        "value": value,
        "seconds": [seconds, seconds],
        "median": seconds,
        "tensor_bytes": size,
        "refused": "",
        "predicted": predicted,
    }


def test_growth_is_judged_by_flops_and_plan() -> None:
    linear = [point(x, 0.1 + x, 100 + x, flops=x, planned=90 + x) for x in (1, 2, 4, 8)]
    assert all(check["met"] for check in checks("growth", linear))
    quadratic = [point(x, 0.1 + x * x, 100 + x * x, flops=x, planned=90 + x) for x in (1, 2, 4, 8)]
    assert [check["met"] for check in checks("growth", quadratic)] == [False, False, False, False]


def test_a_layout_that_disagrees_has_no_verdict_on_its_time() -> None:
    two = [point(1, 2.0, 100, flops=10, planned=100), point(2, 1.2, 60, flops=5, planned=60)]
    assert [(check["value"], check["met"]) for check in checks("layout", two)] == [(pytest.approx(1.2), True)]
    two[1]["refused"] = disagreement({"student_loss": 1.00002}, {"student_loss": 1.0})
    assert two[1]["refused"] == "student_loss is 1.00002 instead of 1"
    assert [check["met"] for check in checks("layout", two)] == [False]


def test_idle_shares() -> None:
    assert idle_share([(2.0, 3.0), (2.0, 2.5)]) == pytest.approx(1 / 3)
    measured = point(2, 1.0, 1, flops=1, planned=1)
    for share, met in ((0.36, True), (0.40, False)):
        assert [check["met"] for check in checks("bubble", [measured | {"idle": [0.9, share, 0.1]}])] == [met]


def test_predictions(tmp_path: Path) -> None:
    """Of stages that are alike the idle share is the formula's, and tensor parallelism halves the FLOPs of a rank."""
    world = build_world(TINY, tmp_path, 1)

    def predictions(name: str) -> list[Prediction]:
        return [Prediction.of(one, world, on_gpu=False) for one in AXES[name].make(TINY)]

    for prediction in predictions("bubble"):
        count = prediction.point.micro_batches
        assert prediction.bubble == 1 / (count + 1)
        assert prediction.bubble < prediction.idle < prediction.bubble + 0.06
    one, two, four = predictions("tensor")
    assert one.critical == pytest.approx(one.step.total)
    assert (two.critical, four.critical) == (one.critical / 2, one.critical / 4)
    plain, again, *_ = predictions("savings")
    assert again.step.total - plain.step.total == again.repeated > 0 == plain.repeated
    assert sum(again.kept_bytes.values()) < sum(plain.kept_bytes.values()) / 5


def test_the_command_names_every_axis() -> None:
    assert tuple(AXES) == AXES_BY_NAME


def test_the_page_keeps_the_newest_of_each_axis(tmp_path: Path) -> None:
    for name, last in (("layers", 9.0), ("sequence", 8.1), ("layers", 8.1)):
        points = [point(x, seconds, 100 + x, flops=x, planned=90 + x) for x, seconds in ((1, 1.1), (2, 2.1), (8, last))]
        entry = {"axis": name, "title": AXES[name].title, "about": "", "command": "megaokd", "environment": {}}
        page = write_report(tmp_path, entry | {"points": points})
    assert [one["axis"] for one in json.loads((tmp_path / "growth.json").read_text())] == ["sequence", "layers"]
    assert page.count("## ") == 2
    assert page.count("The line: 100 ms + FLOPs / ") == 2
    assert (tmp_path / "growth.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_point_in_a_process_of_its_own() -> None:
    axis = replace(AXES["savings"], make=lambda pair: AXES["savings"].make(pair)[1:2])
    (found,) = measure_axis(axis, TINY, 1)
    assert found["name"] == "one process, recomputed"
    assert found["kept_bytes"] == found["predicted"]["kept_bytes"]
    assert found["median"] == found["seconds"][0] > 0
    assert not found["refused"]
    assert "idle" not in found


@pytest.mark.slow
def test_the_peak_is_the_plan_s() -> None:
    """Where activations are three quarters of it. What was counted before the step is not held in it."""
    pair = replace(TINY, sequence=512)
    axis = replace(AXES["savings"], make=lambda pair: AXES["savings"].make(pair)[:1])
    (found,) = measure_axis(axis, pair, 1)
    assert found["tensor_bytes"] == pytest.approx(found["predicted"]["tensor_bytes"], rel=0.05)
