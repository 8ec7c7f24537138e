"""The configuration file: what is accepted, and what a mistake is answered with."""

from pathlib import Path

import pytest

from megaokd.config_file import load_config, parse_config, to_dict
from megaokd.errors import UserError

MINIMAL = "data: {train: x}\ntrain: {steps: 3}\ncheckpoint: {folder: r}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def test_overrides_are_yaml_and_reach_any_depth(file: Path) -> None:
    config = load_config(
        file, ["optimizer.student.lr=1e-3", "teacher.online=null", "student.architecture={hidden_size: 64}"]
    )
    assert config.optimizer.student.lr == 1e-3
    assert config.teacher.online is None
    assert config.student.architecture.hidden_size == 64


def test_online_group_keeps_its_own_defaults(file: Path) -> None:
    assert load_config(file, ["optimizer.online.lr=1e-5"]).optimizer.online.weight_decay == 0.0


def test_round_trip(file: Path) -> None:
    config = load_config(file)
    assert parse_config(to_dict(config)) == config


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (MINIMAL + "teacher:\n  online: {rnak: 4}\n", [], ["run.yaml:5", "teacher.online.rnak", "did you mean 'rank'"]),
        (MINIMAL + "teacher:\n  online: {rank: many}\n", [], ["run.yaml:5", "teacher.online.rank = 'many'"]),
        (MINIMAL + "paralel: {tensor: 2}\n", [], ["run.yaml:4", "'paralel'", "did you mean 'parallel'"]),
        (MINIMAL, ["train.steps=-1"], ["override 'train.steps=-1'", "greater than 0"]),
        (MINIMAL, ["train.steps"], ["expected section.key=value"]),
        (MINIMAL, ["train.steps.more=1"], ["steps is not a section"]),
        (MINIMAL, ["objective.student={kl: 1}"], ["'forward_kl'"]),
        ("data: {train: x}\ncheckpoint: {folder: r}\n", [], ["'train' is required"]),
        ("data: [1, 2\n", [], ["not valid YAML"]),
        ("- a\n", [], ["expected a mapping"]),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, overrides: list[str], expected: list[str]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(path, overrides)
    for part in expected:
        assert part in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml.*cannot be read"):
        load_config(tmp_path / "nowhere.yaml")
