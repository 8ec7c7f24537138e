"""What a merged teacher needs; tests/distributed/test_family_layouts.py compares the files themselves with peft."""

from typing import Literal

import pytest

from megaokd.config import Checkpoint, Config, Data, OnlineModules, Teacher, Train
from megaokd.errors import UserError
from megaokd.export_teacher import check_teacher_export


def config(teacher: Teacher) -> Config:
    checkpoint = Checkpoint(folder="run", export_merged_teacher=True)
    return Config(data=Data(train="data"), train=Train(steps=1), checkpoint=checkpoint, teacher=teacher)


@pytest.mark.parametrize("teacher", [Teacher(), Teacher(path="teacher", online=None)])
def test_refused_without_modules(teacher: Teacher) -> None:
    with pytest.raises(UserError, match=r"export_merged_teacher needs a teacher with online modules"):
        check_teacher_export(config(teacher))


def test_allowed_with_modules() -> None:
    check_teacher_export(config(Teacher(path="teacher", online=OnlineModules())))


@pytest.mark.parametrize("kind", ["bottleneck", "head"])
def test_refused_with_modules_that_are_not_linear(kind: Literal["bottleneck", "head"]) -> None:
    with pytest.raises(UserError, match=f"needs teacher.online.kind=lora, not {kind}"):
        check_teacher_export(config(Teacher(path="teacher", online=OnlineModules(kind=kind))))
