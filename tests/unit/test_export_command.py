"""What `megaokd export` refuses before it builds anything; tests/distributed/test_runs.py compares what it writes."""

from pathlib import Path

import pytest

from megaokd.config import Checkpoint, Config, Data, OnlineModules, Teacher, Train
from megaokd.errors import UserError
from megaokd.export_checkpoint import WHAT, What, check_export


def config(online: OnlineModules | None) -> Config:
    teacher = Teacher(path="teacher", online=online)
    return Config(data=Data(train="data"), train=Train(steps=1), checkpoint=Checkpoint(folder="run"), teacher=teacher)


@pytest.mark.parametrize("what", WHAT)
def test_lora_has_every_form(what: What, tmp_path: Path) -> None:
    check_export(config(OnlineModules()), what, tmp_path / "new")
    check_export(config(OnlineModules()), what, tmp_path)


@pytest.mark.parametrize("online", [None, OnlineModules(kind="head"), OnlineModules(kind="bottleneck")])
def test_other_modules_have_none(online: OnlineModules | None, tmp_path: Path) -> None:
    check_export(config(online), "student", tmp_path)
    for what in WHAT[1:]:
        with pytest.raises(UserError, match=f"--what={what} needs LoRA modules.*this run has"):
            check_export(config(online), what, tmp_path)


def test_an_output_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="is not an empty folder"):
            check_export(config(None), "student", output)
