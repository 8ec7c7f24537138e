"""Warnings: each is given when there is reason, not otherwise, not again and again, and not anew after a resume."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from megaokd.callbacks.base import Callback, StepRecord, ValidationRecord, WarningRecord
from megaokd.callbacks.checks import build_checks
from megaokd.callbacks.fan_out import FanOut
from megaokd.callbacks.journal import read_journal
from megaokd.callbacks.logs import JsonLog
from megaokd.callbacks.progress import WarningLines
from megaokd.callbacks.warnings import WarningGiver
from megaokd.config import Config
from megaokd.config_file import parse_config


class Told(Callback):
    def __init__(self) -> None:
        self.records: list[WarningRecord] = []

    def on_warning(self, record: WarningRecord) -> None:
        self.records.append(record)

    @property
    def steps(self) -> list[tuple[str, int]]:
        return [(record.kind, record.step) for record in self.records]


def config(**warnings: Any) -> Config:
    values = {"data": {"train": "x"}, "train": {"steps": 9000}, "checkpoint": {"folder": "x"}}
    return parse_config({**values, "logging": {"warnings": warnings}})


def giver(told: Callback, past: Iterable[Any] = (), **warnings: Any) -> WarningGiver:
    options = config(**warnings)
    repeat_after = options.logging.warnings.repeat_after
    return WarningGiver(build_checks(options), told, repeat_after=repeat_after, past=past)


def step(number: int, *, student: float = 1.0, online: float = 0.1, wait: float = 0.0) -> StepRecord:
    return StepRecord(
        step=number,
        total_steps=9000,
        metrics={"student_loss": 2.0},
        norms={"student": student, "online": online},
        learning_rates={},
        tokens=10,
        input_tokens=20,
        seconds=0.5,
        memory_bytes=1,
        data_seconds=wait,
    )


def validation(number: int, **metrics: float) -> ValidationRecord:
    return ValidationRecord(number, {f"validation/{name}": value for name, value in metrics.items()}, 1.0)


def noisy(number: int) -> float:
    """Norms as they are: within a factor of a few of each other."""
    return (1.0, 0.4, 2.5, 0.7, 3.9)[number % 5]


def test_drift_beyond_its_bound() -> None:
    told = Told()
    watcher = giver(told, teacher_drift=0.5)
    for number, drift in ((50, 0.1), (100, 0.5), (150, 0.51), (200, 0.6), (650, 0.7)):
        watcher.on_validation(validation(number, teacher_drift=drift))
    assert told.steps == [("teacher_drift", 150), ("teacher_drift", 650)], "again after 500 steps, not before"
    text = str(told.records[0])
    assert text.startswith("step 150: warning: the adapted teacher is 0.510 nats a token away")
    assert "optimizer.online.lr" in text


def test_agreement_that_falls() -> None:
    told = Told()
    watcher = giver(told)
    for number, agreement in ((50, 0.30), (100, 0.40), (150, 0.36), (200, 0.41), (250, 0.35)):
        watcher.on_validation(validation(number, top1_agreement=agreement))
    assert told.steps == [("agreement_fall", 250)]
    assert "fallen to 0.350, from 0.410 at step 200" in told.records[0].seen


def test_spikes_of_either_group_against_its_own_median() -> None:
    told = Told()
    watcher = giver(told)
    for number in range(1, 300):
        watcher.on_step(step(number, student=noisy(number), online=0.01 * noisy(number)))
    assert told.steps == []
    watcher.on_step(step(300, student=0.1, online=0.2))
    watcher.on_step(step(301, student=50.0, online=0.01))
    assert told.steps == [("gradient_spike/online", 300), ("gradient_spike/student", 301)]
    assert "50 times the median of its last 100" in told.records[1].seen
    assert "clipped to 1" in told.records[1].advice


def test_a_norm_without_a_past_is_no_spike() -> None:
    told = Told()
    watcher = giver(told)
    for number in range(1, 20):
        watcher.on_step(step(number, student=1000.0 if number == 10 else 1.0, online=0.0))
    watcher.on_step(step(20, student=1.0, online=5.0))
    watcher.on_step(step(21, online=5.0))
    assert told.steps == [], "too few values, or a median of nothing"


def test_waiting_for_data() -> None:
    told = Told()
    watcher = giver(told)
    for number in range(1, 51):
        watcher.on_step(step(number, wait=0.4 if number < 10 else 0.0))
    assert told.steps == [], "one slow beginning is not a stall"
    for number in range(51, 120):
        watcher.on_step(step(number, wait=0.15))
    assert [kind for kind, _ in told.steps] == ["data_wait"]
    assert "of the last 50 steps' time went into waiting for data" in told.records[0].seen


def test_null_switches_each_off() -> None:
    names = [field.name for field in dataclasses.fields(config().logging.warnings) if field.name != "repeat_after"]
    assert not build_checks(config(**dict.fromkeys(names)))
    for name in names:
        assert len(build_checks(config(**{name: None}))) < len(build_checks(config()))


@pytest.mark.parametrize("value", [0.0, -1.0, 1.5])
def test_bounds_that_make_no_sense_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"logging\.warnings\.agreement_fall"):
        config(agreement_fall=value)


def test_a_resumed_run_remembers(tmp_path: Path) -> None:
    """What was told is not told again, what was the best and what was usual is still known."""
    whole, first, second = Told(), Told(), Told()

    def drive(told: Told, folder: Path, steps: range, past: Iterable[Any] = ()) -> None:
        log = JsonLog(folder, every=1)
        others = FanOut([log, told])
        watcher = FanOut([others, giver(others, past)])
        for number in steps:
            student = 40.0 if number in (60, 125) else noisy(number)
            watcher.on_step(step(number, student=student, online=4.0 if number == 125 else 0.1))
            if number % 50 == 0:
                drift = 2.0 if number >= 100 else 0.1
                watcher.on_validation(validation(number, teacher_drift=drift, top1_agreement=1 / (1 + number // 50)))
        watcher.close()

    cut = tmp_path / "cut"
    drive(whole, tmp_path / "whole", range(1, 701))
    drive(first, cut, range(1, 121))  # killed here, with the last checkpoint at step 110
    drive(second, cut, range(111, 701), past=read_journal(cut, last_step=110))
    assert first.steps + second.steps == whole.steps
    assert [kind for kind, _ in second.steps] == ["gradient_spike/online", "teacher_drift", "agreement_fall"]
    assert read_journal(cut) == read_journal(tmp_path / "whole")


def test_a_torn_line_and_the_lines_of_a_try_before_are_not_read(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"kind": "train", "step": 10}, {"kind": "validation", "step": 10}]
    lines += [{"kind": "train", "step": 20}, {"kind": "warning", "step": 20}, {"kind": "message", "text": "again"}]
    again = [{"kind": "train", "step": 5}, {"kind": "train", "step": 10}, {"kind": "checkpoint", "step": 5}]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, *again]) + '{"kind": "tra'
    (tmp_path / "log.jsonl").write_text(text)
    assert read_journal(tmp_path) == [lines[-1], *again]
    assert read_journal(tmp_path, last_step=5) == [again[0], again[2]]
    assert read_journal(tmp_path / "nothing") == []


def test_a_warning_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    WarningLines().on_warning(WarningRecord(7, "data_wait", "something was seen", "Do something"))
    assert capsys.readouterr().err == "megaokd: step 7: warning: something was seen. Do something\n"
