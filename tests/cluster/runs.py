"""Runs of `megaokd train` as these tests need them: a configuration, the losses in a log, waiting for a step."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.launch import ROOT
from tests.support.tiny import TinyWorld

STEPS = 24
OPTIONS: dict[str, dict[str, Any]] = {"train": {"steps": STEPS, "resume": "auto"}}
SCRIPTS = ROOT / "launch_scripts"

# The quantities a log is compared by.
NAMES = ("train/student_loss", "train/teacher_loss", "gradient_norm/student", "gradient_norm/online")


def write_config(world: TinyWorld, folder: Path, **sections: dict[str, Any]) -> Path:
    """A configuration in `folder` whose run leaves what it leaves in `folder/run`."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(world.config(folder / "run", **sections)))))
    return path


def records(folder: Path) -> list[dict[str, Any]]:
    """The training records of a run's log, in the order in which they were written."""
    log = folder / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]


def messages(folder: Path) -> list[str]:
    """What the run said in its log."""
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [json.dumps(record) for record in lines if record["kind"] not in ("train", "validation")]


def steps_done(folder: Path) -> list[int]:
    """The steps in the order in which they were done."""
    return [record["step"] for record in records(folder)]


def assert_same_losses(folder: Path, expected: Path) -> None:
    """Both objectives' losses and both groups' gradient norms of every step, within 1e-5, and every step there.

    A layout changes the order of sums and nothing else; a step that was done twice is compared twice.
    """
    truth = {record["step"]: record for record in records(expected)}
    found = records(folder)
    assert {record["step"] for record in found} == truth.keys()
    for record in found:
        for name in NAMES:
            assert record[name] == pytest.approx(truth[record["step"]][name], rel=1e-5), (record["step"], name)


def wait_until(what: str, condition: Callable[[], bool], seconds: float, explain: Callable[[], str] = str) -> float:
    """Wait for a condition; returns the seconds it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, f"after {seconds} s still not {what}\n{explain()}"
        time.sleep(0.05)
    return time.monotonic() - start
