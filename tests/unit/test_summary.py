"""The page of a run and its charts; DeepSpeed's monitors."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from megaokd.callbacks.summary import CONFIG_FILE, write_summary
from megaokd.engine.monitors import check_monitors, without_monitors
from megaokd.errors import UserError
from megaokd.summary.chart import line_chart


def points(svg: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'<polyline points="([^"]*)"', svg)
    return [[tuple(map(float, place.split(","))) for place in line.split()] for line in lines]  # type: ignore[misc]


def test_a_chart_draws_what_it_is_given() -> None:
    svg = line_chart("a < b", {"one": [(0, 1.0), (50, 3.0), (100, 2.0)], "two": [(0, math.nan), (100, 1.0)]})
    first, second = points(svg)
    (x0, y0), (x1, y1), (x2, y2) = first
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y2 - y1), abs=0.3), "upwards is less on paper"
    assert second == [(x2, y0)], "what is not finite is left out"
    assert "a &lt; b" in svg
    ticks = [float(text) for text in re.findall(r'text-anchor="end">([^<]+)<', svg)]
    assert ticks == sorted(ticks)
    assert 3 <= len(ticks) <= 6
    assert 1.0 <= ticks[0] < ticks[-1] <= 3.0


def test_a_chart_of_powers_and_of_nothing() -> None:
    (line,) = points(line_chart("norms", {"norm": [(1, 0.1), (2, 0.0), (3, 1.0), (4, 10.0)]}, logarithmic=True))
    assert [round(y) for _, y in line] == [190, 112, 34]
    assert line_chart("empty", {"none": [], "nan": [(1, math.nan)]}) == ""
    assert "<polyline" in line_chart("one value", {"flat": [(1, 0.0), (2, 0.0)]})


def test_large_numbers_are_short() -> None:
    svg = line_chart("bytes", {"bytes": [(0, 6.4e8), (40000, 6.8e8)]})
    ticks = ["640M", "650M", "660M", "670M", "680M", "0", "10k", "20k", "30k", "40k"]
    assert re.findall(r">([^<>]+)</text>", svg) == ["bytes", "bytes", *ticks, "step"]


def test_long_series_are_thinned_and_keep_their_end() -> None:
    long, end = [(step, float(step)) for step in range(12345)], [(12344, 12344.0)]
    line, _ = points(line_chart("long", {"long": long, "end": end}))
    assert len(line) <= 501
    assert line[-1] == (368.0, 34.0)


def test_a_page_of_a_run(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"kind": "train", "step": step, "train/student_ce": 2.0 / step, "gradient_norm/student": 1.0}
        for step in range(1, 6)
    ]
    lines += [
        {"kind": "validation", "step": 5, "seconds": 1.0, "validation/teacher_drift": 0.25},
        {"kind": "modules", "step": 5, "norms": {"layers.1.mlp.up_proj": 0.5, "layers.1.mlp.down_proj": 1.5}},
        {"kind": "warning", "step": 4, "warning": "data_wait", "seen": "it <waited>", "advice": "Look"},
        {"kind": "checkpoint", "step": 5, "bytes": 1, "stall_seconds": 0.1, "write_seconds": 0.1},
        {"kind": "message", "text": "a <message>"},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / CONFIG_FILE).write_text("train: {steps: 5}\n")
    page = write_summary(tmp_path).read_text()
    for text in (
        "Step 5; last checkpoint: step 5; 1 warning. ",
        "it &lt;waited&gt;",
        "a &lt;message&gt;",
        "train: {steps: 5}",
        "Is it learning?",
        "Is the teacher drifting?",
    ):
        assert text in page
    assert page.index("down_proj") < page.index("up_proj"), "the largest first"
    assert "Is it fast?" not in page, "nothing is known of it"
    assert not re.search(r"<script|https?://|src=|href=", page)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no log\.jsonl"):
        write_summary(tmp_path)


def test_a_monitor_without_its_package() -> None:
    check_monitors({"wandb": {"enabled": False}, "csv_monitor": {"enabled": True}, "zero_optimization": {}})
    with pytest.raises(UserError, match=r"deepspeed\.comet is enabled, but the package comet_ml is not installed"):
        check_monitors({"comet": {"enabled": True}})
    options = {"wandb": {"enabled": True, "project": "x"}, "wall_clock_breakdown": False}
    assert without_monitors(options) == {**options, "wandb": {"enabled": False, "project": "x"}}
