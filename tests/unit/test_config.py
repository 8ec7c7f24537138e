"""The configuration file: what is accepted, and what a mistake is answered with."""

from pathlib import Path
from typing import get_args

import pytest

from megaokd import terms
from megaokd.config import Objective
from megaokd.config_file import load_config, parse_config, read_yaml, to_dict
from megaokd.distill.objective import Terms
from megaokd.errors import UserError
from megaokd.kernels import Term
from megaokd.kernels.terms import KINDS
from megaokd.methods import METHODS, MethodName
from megaokd.option_types import steps_of

MINIMAL = "data: {train: x}\ntrain: {steps: 3}\ncheckpoint: {folder: r}\n"
WITH_TEACHER = MINIMAL + "teacher: {path: t, online: {rank: 3, layers: 2, targets: [q_proj]}}\n"


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
    for overrides in ([], ["student.from_teacher.layers=2"]):
        config = load_config(file, overrides)
        assert parse_config(to_dict(config)) == config


def test_an_option_of_a_term_may_hold_a_point(file: Path) -> None:
    terms = ["objective.student.skew_forward_kl(0.2)=1", "objective.student.jsd=0.5"]
    config = load_config(file, ["teacher.path=models/t", *terms])
    assert config.objective.student == {"skew_forward_kl(0.2)": 1.0, "jsd": 0.5}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("objective.student.reverse_kl=1", "objective.student.reverse_kl needs a teacher"),
        ("teacher.dtype=bfloat16", "teacher.dtype needs a teacher"),
    ],
)
def test_a_teacher_that_was_forgotten_is_told(file: Path, override: str, words: str) -> None:
    """Else the run would be supervised training without a word."""
    with pytest.raises(UserError) as error:
        load_config(file, [override])
    assert str(error.value).startswith(f"override {override!r}: {words}, and there is no teacher.path; ")
    assert load_config(file, [override, "teacher.path=null"]).teacher.path is None
    assert load_config(file, ["objective.student.ce=1", "objective.student.jsd=0"]).teacher.path is None


def test_a_path_may_begin_at_home(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somebody")
    config = load_config(file, ["checkpoint.folder=~/run", "teacher={path: ~/models/t}"])
    assert (config.checkpoint.folder, config.teacher.path) == ("/somebody/run", "/somebody/models/t")


def test_terms_are_those_of_the_loss() -> None:
    assert {*terms.PLAIN, *terms.WITH_OPTION, *terms.WITH_COUNT} == set(KINDS)
    for name in terms.WITH_OPTION:
        assert Terms.from_config(Objective(student={f"{name}(0.3)": 1.0}), has_teacher=True, online=False).student == (
            Term(name, 1.0, **{"beta" if name == "jsd" else "alpha": 0.3}),
        )
    top = Terms.from_config(Objective(student={"forward_kl_top(7)": 1.0}), has_teacher=True, online=False)
    assert top.student == (Term("forward_kl_top", 1.0, top=7),)


@pytest.mark.parametrize("teacher", [{}, {"ce": 0.0}, {"anchor": 1.0}])
def test_modules_that_would_learn_nothing_are_refused(teacher: dict[str, float]) -> None:
    with pytest.raises(UserError, match=r"nothing to learn.*teacher.online=null"):
        Terms.from_config(Objective(teacher=teacher), has_teacher=True, online=True)
    assert Terms.from_config(Objective(teacher=teacher), has_teacher=True, online=False).teacher == ()


@pytest.mark.parametrize("name", METHODS)
def test_one_file_serves_every_method(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(WITH_TEACHER)
    config = load_config(path, [f"method={name}", "objective.temperature=2.0"])
    assert config.objective.student == METHODS[name].student
    assert config.objective.temperature == 2.0
    assert (config.teacher.path is None) == (name == "sft")
    online = config.teacher.online
    assert (online.kind if online else None) == METHODS[name].kind
    assert online is None or (online.rank, online.layers) == (3, None if online.kind == "head" else 2)
    assert parse_config(to_dict(config)) == config
    with_pull = load_config(path, [f"method={name}", "objective.teacher={ce: 2.0}"])
    assert with_pull.objective.teacher == {"ce": 2.0}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_on_the_command_line_replaces_what_the_file_decides(name: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    objective = "objective: {student: {tvd: 3.0}, teacher: {tvd: 3.0}, temperature: 2.0}\n"
    for online in ("null", "{kind: lora, rank: 3}"):
        path.write_text(MINIMAL + f"teacher: {{path: t, online: {online}}}\n" + objective)
        config = load_config(path, [f"method={name}"])
        assert config.objective.student == METHODS[name].student
        assert config.objective.teacher == METHODS[name].teacher
        assert config.objective.temperature == 2.0
        assert (config.teacher.online.kind if config.teacher.online else None) == METHODS[name].kind
        path.write_text(path.read_text() + f"method: {name}\n")
        with pytest.raises(UserError, match=f"method={name}: it decides objective.student"):
            load_config(path)


def test_every_method_can_be_named() -> None:
    assert set(get_args(MethodName)) == METHODS.keys()


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        (MINIMAL + "teacher:\n  online: {rnak: 4}\n", [], ["run.yaml:5", "teacher.online.rnak", "did you mean 'rank'"]),
        (MINIMAL + "teacher:\n  online: {rank: many}\n", [], ["run.yaml:5", "teacher.online.rank = 'many'"]),
        (MINIMAL + "paralel: {tensor: 2}\n", [], ["run.yaml:4", "'paralel'", "did you mean 'parallel'"]),
        (MINIMAL, ["data.train=[{pth: x}]"], ["unknown key 'data.train.0.pth'", "did you mean 'path'"]),
        (MINIMAL, ["trian.steps=3"], ["override 'trian.steps=3': unknown key 'trian'; did you mean 'train'?"]),
        (WITH_TEACHER, ["teacher.onlin.rank=3"], ["override 'teacher.onlin.rank=3': unknown key 'teacher.onlin'"]),
        (
            MINIMAL + "objective:\n  student:\n    ce: 1.0\n",
            ["objective.student={ce: -1.0}"],
            ["override 'objective.student={ce: -1.0}': objective.student.ce = -1.0"],
        ),
        (
            MINIMAL + "objective: {student: {ce: -1.0}}\n",
            ["objective.fused=false"],
            ["run.yaml:4: objective.student.ce"],
        ),
        (MINIMAL, ["train.steps=-1"], ["override 'train.steps=-1'", "greater than 0"]),
        (MINIMAL, ["train.steps"], ["expected section.key=value"]),
        (MINIMAL, ["train.steps.more=1"], ["steps is not a section"]),
        (MINIMAL, ["objective.student={kl: 1}"], ["'forward_kl'"]),
        (MINIMAL, ["objective.student.skew_forward_kl(1.5)=1"], ["skew_forward_kl(1.5)", "between 0 and 1"]),
        (MINIMAL, ["objective.student={ce(0.5): 1}"], ["'ce' takes no option"]),
        (MINIMAL, ["objective.student={anchor: 1}"], ["a term of objective.teacher"]),
        (MINIMAL, ["teacher.online={kind: head, layers: 2}"], ["leave layers out"]),
        (MINIMAL, ["teacher.online={kind: bottleneck, targets: [q_proj]}"], ["targets are of kind=lora"]),
        (MINIMAL, ["method=jsd"], ["override 'method=jsd'", "give teacher.path"]),
        (MINIMAL + "method: fkl\n", [], ["run.yaml:4", "method = 'fkl'", "'forward_kl'"]),
        (WITH_TEACHER, ["method=jsd", "objective.student={ce: 1}"], ["it decides objective.student: {'ce': 1.0"]),
        (WITH_TEACHER, ["method=pesf_kd", "teacher.online.kind=lora"], ["it decides teacher.online.kind: head"]),
        (WITH_TEACHER, ["method=okd_lora", "teacher.online=null"], ["it decides teacher.online.kind: lora"]),
        (
            MINIMAL + "student: {from_teacher: {layers: 2}}\n",
            ["student.architecture.num_layers=2"],
            ["architecture is of a student from scratch"],
        ),
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


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.train=[{path: a, weight: 0}]", "data.train.0.weight = 0: Input should be greater than 0"),
        ("data.train=3", "data.train = 3: Input should be a valid string; or: Input should be a list"),
        ("data.train=[x]", "data.train.0 = 'x': Input should be a section, a mapping of keys to values"),
        ("teacher.cache=x", "teacher.cache = 'x': Input should be a section, a mapping of keys to values"),
        ("objective.student=3", "objective.student = 3: Input should be a mapping of keys to values"),
        ("data.train=[{weight: 1}]", "the key 'data.train.0.path' is required"),
        ("student.from_teacher.layers=[1, -2]", "layers.1 = -2: Input should be greater than or equal to 0"),
    ],
)
def test_of_a_key_with_several_forms_only_the_form_that_was_meant_is_told(
    tmp_path: Path, override: str, expected: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    with pytest.raises(UserError) as error:
        load_config(path, [override])
    assert str(error.value).endswith(expected)
    assert str(error.value).count("override") == 1, "one problem, one sentence"


def test_a_key_that_stands_twice_is_told(tmp_path: Path) -> None:
    """In one section; several `<<` are no such thing, nor a key over one that is merged."""
    path = tmp_path / "run.yaml"
    path.write_text("train:\n  steps: 3\n  seed: 1\n  steps: 4\n")
    with pytest.raises(UserError) as error:
        load_config(path)
    assert str(error.value) == f"{path}:4: the key 'train.steps' is there already, at {path}:2; leave out one"
    path.write_text("a: &a {steps: 3}\nb: &b {seed: 5}\ntrain:\n  <<: *a\n  <<: *b\n  steps: 4\n")
    assert read_yaml(path)[0]["train"] == {"steps": 4, "seed": 5}


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.yaml.*cannot be read"):
        load_config(tmp_path / "nowhere.yaml")


def test_steps_to_profile_are_read_as_written(file: Path) -> None:
    """Unquoted, YAML takes 3:5 for a number to base 60."""
    for text in ("3:5", "1:2", "12:61", "100:159"):
        assert load_config(file, [f"train.profile={text}"]).train.profile == text
    assert load_config(file).train.profile is None
    assert list(steps_of("3:5")) == [3, 4]


@pytest.mark.parametrize("text", ["5", "5:3", "3:3", "0:2", "a:b", "3-5", "true", "1.5", "[3, 5]"])
def test_malformed_steps_to_profile_are_refused(file: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"train\.profile = .*expected START:STOP"):
        load_config(file, [f"train.profile={text}"])
