"""Recipes of a comparison: what is merged, what is refused; means and intervals."""

import copy
import importlib.util
import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from transformers import LlamaConfig

from megaokd.comparison import responses
from megaokd.comparison.grid import Cell, all_work
from megaokd.comparison.load import load_recipe
from megaokd.comparison.lock import only_one
from megaokd.comparison.preflight import check_before_training, check_sources
from megaokd.comparison.recipe import Recipe, merged
from megaokd.comparison.results import MEASURES, Measured, measures_of
from megaokd.comparison.search import SearchRun, read_choice
from megaokd.comparison.work import CellError, write_parts
from megaokd.config_file import parse_config
from megaokd.errors import UserError
from megaokd.evaluation.figures import check_matplotlib
from megaokd.tools import compare as compare_command
from megaokd.tools import evaluate as evaluate_command
from megaokd.tools import generate as generate_command
from tests.unit.data_helpers import token_dataset

RECIPE: dict[str, Any] = {
    "folder": "runs/grid",
    "base": {"data": {"train": "data/train"}, "teacher": {"path": "models/teacher"}, "train": {"steps": 3}},
    "methods": {"sft": {"method": "sft"}, "okd": {"method": "okd_lora", "teacher": {"online": {"rank": 2}}}},
    "seeds": [0, 1],
    "evaluation": {"data": "data/test", "generate": 4},
}


def write(tmp_path: Path, **changes: Any) -> Path:
    """RECIPE with `section__key=value` set."""
    values = copy.deepcopy(RECIPE)
    for name, value in changes.items():
        *path, last = name.split("__")
        target = values
        for part in path:
            target = target.setdefault(part, {})
        target[last] = value
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file


def test_a_training_configuration_is_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("data: {train: x}\ntrain: {steps: 3}\ncheckpoint: {folder: r}\n")
    with pytest.raises(UserError, match=r"own\.yaml: this is a training configuration.*compare\.md\)$"):
        load_recipe(tmp_path / "own.yaml")


def line_of(file: Path, text: str) -> str:
    number = next(number for number, line in enumerate(file.read_text().splitlines(), start=1) if text in line)
    return f"{file}:{number}: "


@pytest.mark.parametrize(
    ("change", "value", "words"),
    [
        ("seed", [1], "unknown key 'seed'; did you mean 'seeds'?"),
        ("evaluation__generat", 3, "unknown key 'evaluation.generat'; did you mean 'generate'?"),
        ("evaluation__top_p", 1.5, "evaluation.top_p = 1.5"),
        ("evaluation__prompts", [], "evaluation.prompts = []: Input should be a valid string; or: "),
        ("base__train__stepz", 3, "unknown key 'train.stepz'; did you mean 'steps'?"),
        ("methods__okd__optimiser", {}, "unknown key 'optimiser'; did you mean 'optimizer'?"),
        ("methods__sft__method", "stf", "method = 'stf'"),
        ("base__train__seed", 7, "train.seed is decided for each run"),
        ("methods__okd__checkpoint", {"export": False}, "checkpoint.export is decided for each run"),
        ("methods__okd__train", {"steps": 4}, "method 'okd' differs from 'sft' in train.steps"),
        ("methods__okd__student", {"architecture": {"num_layers": 2}}, "method 'okd' differs from 'sft' in student"),
        ("methods__../up", {"method": "sft"}, "is to name a folder"),
        ("seeds", [1, 2, 1], "one of them is there twice"),
        ("evaluation__tensor", 2, "evaluation.tensor = 2 does not divide processes = 1"),
        ("reference", "stf", "reference = 'stf' is no method of this recipe"),
        ("methods__okd__like", "stf", "okd.like = 'stf' is to be another method of this recipe: sft"),
        ("methods__okd__like", "okd", "okd.like = 'okd' is to be another method of this recipe: sft"),
        ("methods__okd__equal_time_of", "sft", "okd.equal_time_of needs okd.like"),
        ("methods__okd__set", {"objective.studen.ce": 1.0}, "unknown key 'objective.studen'; did you mean 'student'?"),
        ("methods__okd__set", {"train.steps.no": 1.0}, "okd.set: steps is not a section"),
        ("methods__okd__set", {"train.seed": 1}, "okd.set: train.seed is decided for each run"),
        ("methods__okd__seeds", [0, 5], "okd has seeds [0, 5], the recipe only [0, 1]; set okd.seeds"),
        ("methods__okd__search", {"values": {}}, "unknown key 'search.values'"),
        ("methods__okd__search__candidates", {}, "search.candidates = {}"),
        ("methods__okd__search", {"candidates": {"objective.temperature": [1]}}, "set data.validation, validate_every"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, change: str, value: Any, words: str) -> None:
    file = write(tmp_path, **{change: value})
    with pytest.raises(UserError) as error:
        load_recipe(file)
    text = str(error.value)
    assert words in text
    # What a method has to do with others is told at the method, other mistakes at their own key.
    key = (
        "okd"
        if "differs" in words or "okd" in words.split(".")[0] or "set data" in words
        else change.split("__")[-1]
        if "decided" not in words
        else words.split(" ")[0]
    )
    assert text.startswith(line_of(file, f"{key.split('.')[-1]}:"))


ENTRIES: dict[str, Any] = {
    "static": {"method": "forward_kl", "adapted_teacher_of": "okd"},
    "sft": {"method": "sft"},
    "longer": {"like": "sft", "equal_time_of": "okd"},
    "hot": {"like": "okd", "objective": {"temperature": 2.0}, "seeds": [1]},
    "anchored": {"like": "okd", "set": {"objective.teacher.anchor": 0.5}, "seeds": [1]},
    "okd": {
        "method": "okd_lora",
        "search": {
            "candidates": {"objective.teacher.forward_kl": [0.3, 3.0], "optimizer.online.lr": [1e-3, 1e-4]},
            "steps": 2,
        },
    },
}


def linked(tmp_path: Path, **changes: Any) -> Recipe:
    """A recipe whose entries take something from one another."""
    base = {**RECIPE["base"], "train": {"steps": 3, "validate_every": 3}}
    base["data"] = {"train": "data/train", "validation": "data/validation"}
    return load_recipe(
        write(tmp_path, folder=str(tmp_path / "grid"), base=base, methods=copy.deepcopy(ENTRIES), **changes)
    )


@pytest.mark.parametrize(
    ("change", "value", "words"),
    [
        ("methods__hot__like", "longer", "hot.like = 'longer', which is itself like another"),
        ("methods__hot__search", {"candidates": {"train.micro_batch": [1]}}, "leave out like or search"),
        ("methods__okd__adapted_teacher_of", "static", "takes something from itself"),
        ("methods__okd__seeds", [0], "has seeds [0, 1], okd only [0]"),
        ("methods__okd__method", "okd_head", "cannot be merged into its teacher"),
        ("methods__sft__adapted_teacher_of", "okd", "sft.adapted_teacher_of: its method has no teacher"),
        ("base__student", {"from_teacher": {"layers": 1}}, "would start from other weights"),
        ("evaluation__data", "data/validation", "has to be measured on other data"),
        ("methods__okd__search__candidates", {"train.stepz": [1]}, "unknown key 'train.stepz'"),
        ("methods__okd__search__candidates", {"train.steps.no": [1]}, "steps is not a section"),
        ("methods__okd__search__candidates", {"train.global_batch": [9]}, "share train.global_batch"),
    ],
)
def test_what_entries_cannot_take_from_others(tmp_path: Path, change: str, value: Any, words: str) -> None:
    linked(tmp_path)
    with pytest.raises(UserError) as error:
        linked(tmp_path, **{change: value})
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path))


def test_entries_come_after_what_they_take_from(tmp_path: Path) -> None:
    recipe = linked(tmp_path)
    names = [work.name for work in all_work(recipe)]
    for number, work in enumerate(all_work(recipe)):
        assert {source.name for source in work.sources} <= set(names[:number])
    assert names[0] == "okd, search"
    assert sorted(names[1:]) == sorted(
        [f"{name}, seed {seed}" for name in ENTRIES for seed in (0, 1) if seed or name not in ("hot", "anchored")]
    )


def training(values: dict[str, float], calls: list[Path]) -> Any:
    """Instead of commands: a run whose validation gives `values[its pull]`, a failure where that is none."""

    def run_command(command: list[str], write: Any) -> tuple[int, str]:
        config = yaml.safe_load(Path(command[-1]).read_text())
        folder, terms = Path(config["checkpoint"]["folder"]), config["objective"]["teacher"]
        calls.append(folder)
        value = values.get(f"{terms['forward_kl']}, {config['optimizer']['online']['lr']}")
        if value is None:
            return 2, "not finite"
        records = [{"kind": "validation", "step": step, "validation/student_ce": value + 2 - step} for step in (1, 2)]
        (folder / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        summary = {"steps": 2, "training_seconds": 4.0, "training_cpu_seconds": 6.0}
        (folder / "summary.json").write_text(json.dumps(summary))
        return 0, ""

    return run_command


def test_a_search_chooses_by_validation_for_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, calls = linked(tmp_path), list[Path]()
    values = {"0.3, 0.001": 1.5, "0.3, 0.0001": 1.25, "3.0, 0.001": 1.75}
    monkeypatch.setattr("megaokd.comparison.work.run_command", training(values, calls))
    search = SearchRun(recipe, "okd")
    search.run(print)
    assert search.finished
    assert len(calls) == 4
    chosen = {"objective.teacher.forward_kl": 0.3, "optimizer.online.lr": 1e-4}
    choice = read_choice(recipe, "okd")
    assert choice["chosen"] == chosen
    assert [trial["value"] for trial in choice["trials"]] == [1.5, 1.25, 1.75, None]
    assert "not finite" in choice["trials"][3]["failure"]
    trial = yaml.safe_load((calls[0] / "config.yaml").read_text())
    assert (trial["train"]["steps"], trial["checkpoint"]["export"], trial["train"]["seed"]) == (2, False, 0)
    # The pull is set among the terms that the method gives; who is like OKD has what was chosen for it.
    for method, seed, temperature in (("okd", 0, None), ("okd", 1, None), ("hot", 1, 2.0)):
        config = Cell(recipe, method, seed).parts()["training"]["config"]
        assert config["objective"]["teacher"] == {"ce": 1.0, "forward_kl": 0.3}
        assert config["optimizer"]["online"] == {"lr": 1e-4}
        assert config["objective"].get("temperature") == temperature
        assert config["train"]["steps"] == 3
        parse_config(config)
    anchored = Cell(recipe, "anchored", 1).parts()["training"]["config"]
    assert anchored["objective"]["teacher"] == {"ce": 1.0, "forward_kl": 0.3, "anchor": 0.5}
    other = linked(tmp_path, methods__okd__search__candidates={"objective.teacher.forward_kl": [0.3]})
    with pytest.raises(UserError, match=r"okd, search: .*search was done \(candidates"):
        SearchRun(other, "okd").check_unchanged()


def test_a_search_goes_on_and_needs_one_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, calls = SearchRun(linked(tmp_path), "okd"), list[Path]()
    monkeypatch.setattr("megaokd.comparison.work.run_command", training({}, calls))
    with pytest.raises(CellError, match=r"no trial came to its end; the first: exit status 2"):
        search.run(print)
    assert not search.finished
    values = {f"{pull}, {lr}": pull for pull in (0.3, 3.0) for lr in (1e-3, 1e-4)}
    monkeypatch.setattr("megaokd.comparison.work.run_command", training(values, calls))
    search.run(print)
    assert len(calls) == 8
    (search.folder / "choice.json").unlink()
    search.run(print)
    assert len(calls) == 8, "trials that have ended are not run again"


def test_several_sets_of_prompts(tmp_path: Path) -> None:
    """Words that `megaokd evaluate` understands; a single file decides what it decided before there were sets."""
    sets = {"selfinst": "data/eval/selfinst.jsonl", "vicuna": "data/eval/vicuna.jsonl"}
    several, single, none = (
        load_recipe(write(tmp_path, evaluation__prompts=prompts)) for prompts in (sets, "data/eval/vicuna.jsonl", None)
    )
    for recipe, prompts in ((several, sets), (single, "data/eval/vicuna.jsonl"), (none, None)):
        words = ["--model", "m", "--output", "o", *recipe.evaluation.arguments()]
        assert evaluate_command.prompt_files(evaluate_command._parser().parse_args(words).prompts) == prompts
        assert Cell(recipe, "okd", 0).parts()["evaluation"] == {
            "data": "data/test",
            "generate": 4,
            "max_new_tokens": 64,
            "prompts": prompts,
            "seeds": 0,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_length": None,
            "max_batch_tokens": 4096,
            "teacher": "models/teacher",
        }
    columns = measures_of(several)
    assert [key for key in columns if "rouge" in key] == ["rouge_l selfinst", "rouge_l vicuna"]
    assert columns["rouge_l vicuna"] == "ROUGE-L vicuna"
    assert [key for key in columns if "rouge" not in key] == [key for key in MEASURES if key != "rouge_l"]
    assert measures_of(single) == measures_of(none) == MEASURES


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ("{a: x.jsonl, b: y.jsonl, a: z.jsonl}", "the key 'evaluation.prompts.a' is there already, at "),
        ("{a b: x.jsonl}", "evaluation.prompts.a b = 'a b': String should match"),
        ("{a: 3}", "evaluation.prompts.a = 3: Input should be a valid string"),
        ("{}", "evaluation.prompts = {}: "),
    ],
)
def test_wrong_sets_of_prompts_are_told(tmp_path: Path, prompts: str, words: str) -> None:
    file = write(tmp_path, evaluation__prompts="HERE")
    file.write_text(file.read_text().replace("HERE", prompts))
    with pytest.raises(UserError) as error:
        load_recipe(file)
    assert str(error.value).startswith(line_of(file, "prompts: ") + words)
    for key, value in (("prompts", {"a": "x.jsonl"}), ("prompts", "x.jsonl"), ("seeds", 3)):
        file = write(tmp_path, **{f"evaluation__{key}": value}, evaluation__generate=0)
        with pytest.raises(UserError, match=rf"evaluation\.{key} needs evaluation\.generate above 0"):
            load_recipe(file)


def pretend_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """That there is the data set of the evaluation."""
    monkeypatch.setattr("megaokd.comparison.preflight.TokenDataset", lambda _: SimpleNamespace(vocab_size=300))


def test_files_of_prompts_are_read_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where something is left to run: a grid that is finished needs them no more."""
    ran: list[str] = []

    class Pretended:
        name, sources, finished, begun = "a cell", (), False, False

        def check_unchanged(self) -> None:
            pass

        def run(self, say: Any) -> None:
            ran.append(self.name)

    work = Pretended()
    monkeypatch.setattr("megaokd.comparison.grid.all_work", lambda _: [work])
    pretend_data(monkeypatch)
    monkeypatch.setattr("megaokd.comparison.preflight._check_data", lambda *_: None)
    monkeypatch.setattr("megaokd.comparison.preflight._check_models", lambda *_: None)
    monkeypatch.setattr("megaokd.comparison.preflight.fetch_models", lambda config, _: config)
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text('{"prompt": "p", "output": "o"}\n')
    bad.write_text('{"prompt": "p", "output": "o"}\n{"prompt": "p"}\n')
    absent = tmp_path / "absent.jsonl"
    for prompts, words in (
        ({"a": str(good), "b": str(absent)}, r"absent\.jsonl: cannot be read"),
        ({"a": str(good), "b": str(bad)}, r"bad\.jsonl, line 2: 'references' .* is expected"),
        (str(absent), r"absent\.jsonl: cannot be read"),
    ):
        recipe = load_recipe(write(tmp_path, evaluation__prompts=prompts))
        monkeypatch.setattr(work, "finished", False)
        with pytest.raises(UserError, match=words):
            compare_command._run_grid(recipe)
        monkeypatch.setattr(work, "finished", True)
        assert compare_command._run_grid(recipe) == {}
    assert ran == []
    monkeypatch.setattr(work, "finished", False)
    assert compare_command._run_grid(load_recipe(write(tmp_path, evaluation__prompts={"a": str(good)}))) == {}
    assert ran == ["a cell"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "data/test"),
        (
            {"methods__gkd": {"method": "gkd"}, "base__parallel": {"pipeline": 2}},
            "method 'gkd': train.on_policy does not run with parallel.pipeline",
        ),
        ({"methods__lm": {"method": "distillm"}}, "method 'lm': train.on_policy with adaptive needs train.validate"),
        ({"methods__idle": {"method": "okd_lora", "objective": {"teacher": {"ce": 0.0}}}}, "method 'idle': "),
    ],
)
def test_what_would_fail_in_every_cell_is_told_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    if changes:
        pretend_data(monkeypatch)
    monkeypatch.setattr("megaokd.comparison.work.run_command", lambda *_: pytest.fail("something was run"))
    recipe = load_recipe(write(tmp_path, folder=str(tmp_path / "grid"), **changes))
    with pytest.raises(UserError, match=words):
        compare_command._run_grid(recipe)


def test_data_and_models_are_looked_at_before_the_first_run(tmp_path: Path) -> None:
    """By their config.json: there are no weights here."""
    (tmp_path / "made").mkdir()
    data, teacher = str(token_dataset(tmp_path / "made").folder), tmp_path / "teacher"
    teacher.mkdir()
    config = LlamaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    config.save_pretrained(teacher)
    right = {"evaluation__data": data, "base__data__train": data, "base__teacher__path": str(teacher)}
    check_before_training(load_recipe(write(tmp_path, **right)))
    absent, later = str(tmp_path / "absent"), {"method": "forward_kl", "adapted_teacher_of": "okd"}
    for changes, words in (
        ({"base__data__train": absent}, "absent"),
        ({"base__data__validation": absent}, "absent"),
        ({"base__teacher__path": absent}, "method 'okd': .*absent"),
        ({"methods__okd__teacher__online__layers": 3}, "method 'okd': teacher.online.layers=3, but .* only 2 layers"),
        ({"base__parallel__tensor": 3}, "method 'sft': parallel.tensor=3 does not fit the student"),
    ):
        with pytest.raises(UserError, match=words):
            check_before_training(load_recipe(write(tmp_path, **{**right, "methods__later": later, **changes})))


def test_what_took_from_a_run_that_is_made_again_is_told(tmp_path: Path) -> None:
    """Whoever removes a cell's folder to have it made again would else get a report of two runs."""
    recipe = linked(tmp_path)
    recipe.search_folder("okd").mkdir(parents=True)
    (recipe.search_folder("okd") / "choice.json").write_text(json.dumps({"chosen": {}}))
    grid = all_work(recipe)

    def train(name: str, seconds: float) -> None:
        work = next(work for work in grid if work.name == name)
        work.folder.mkdir(parents=True, exist_ok=True)
        write_parts(work, {})
        summary = {"steps": 3, "training_seconds": seconds, "training_cpu_seconds": 1.0}
        (work.folder / "summary.json").write_text(json.dumps(summary))

    for name in ("sft, seed 0", "okd, seed 0", "longer, seed 0", "static, seed 0"):
        train(name, 1.0)
    check_sources(grid)
    train("okd, seed 0", 2.0)
    with pytest.raises(
        UserError, match=r"^static, seed 0, longer, seed 0: .*remove \S+static/seed-0 \S+longer/seed-0 to"
    ):
        check_sources(grid)
    (recipe.cell_folder("okd", 0) / "summary.json").unlink()
    for name in ("longer", "static"):
        shutil.rmtree(recipe.cell_folder(name, 0))
    check_sources(grid)
    train("okd, seed 0", 2.0)
    (recipe.search_folder("okd") / "choice.json").write_text(json.dumps({"chosen": {}, "trials": []}))
    with pytest.raises(UserError, match=r"^okd, seed 0: made from an earlier run of okd, search, "):
        check_sources(grid)


def test_how_evaluation_is_split_decides_nothing(tmp_path: Path) -> None:
    one, two = (load_recipe(write(tmp_path, processes=2, evaluation__tensor=tensor)) for tensor in (1, 2))
    assert Cell(one, "okd", 0).parts() == Cell(two, "okd", 0).parts()
    assert two.evaluation.arguments()[-2:] == ["--tensor", "2"]


@pytest.mark.parametrize(("time", "steps"), [("wall", 11), ("cpu", 2)])
def test_equal_time_is_that_of_the_cells(tmp_path: Path, time: str, steps: int) -> None:
    recipe = linked(tmp_path, time=time)
    for method, wall, cpu in (("sft", 2.0, 3.0), ("okd", 7.3, 2.0)):
        folder = recipe.cell_folder(method, 0)
        folder.mkdir(parents=True)
        summary = {"steps": 3, "training_seconds": wall, "training_cpu_seconds": cpu}
        (folder / "summary.json").write_text(json.dumps(summary))
    config = Cell(recipe, "longer", 0).parts()["training"]["config"]
    expected = Cell(recipe, "sft", 0).parts()["training"]["config"]
    assert config["train"].pop("steps") == steps
    assert expected["train"].pop("steps") == 3
    assert config["checkpoint"].pop("folder") != expected["checkpoint"].pop("folder")
    assert config == expected


def test_a_static_teacher_is_the_one_that_the_run_left(tmp_path: Path) -> None:
    recipe = linked(tmp_path)
    (recipe.search_folder("okd")).mkdir(parents=True)
    (recipe.search_folder("okd") / "choice.json").write_text(json.dumps({"chosen": {"optimizer.online.lr": 0.5}}))
    static, okd = (Cell(recipe, name, 1).parts()["training"] for name in ("static", "okd"))
    assert static["config"]["teacher"] == {
        "path": str(recipe.cell_folder("okd", 1) / "teacher"),
        "online": None,
    }
    assert static["teacher_of"] == okd, "with another teacher it is another cell"
    assert parse_config(static["config"]).student == parse_config(okd["config"]).student


def test_a_method_is_merged_over_the_base_and_its_terms_replace_others() -> None:
    base = {"train": {"steps": 3, "seed": 0}, "objective": {"student": {"ce": 1.0}, "temperature": 2.0}}
    over = {"train": {"seed": 1}, "objective": {"student": {"jsd": 1.0}}}
    kept = copy.deepcopy((base, over))
    expected = {"train": {"steps": 3, "seed": 1}, "objective": {"student": {"jsd": 1.0}, "temperature": 2.0}}
    assert merged(base, over) == expected
    assert (base, over) == kept


def test_cells_differ_in_seed_and_folder_alone(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    one, two = (recipe.values("okd", seed, recipe.cell_folder("okd", seed)) for seed in recipe.seeds)
    assert (one["train"].pop("seed"), two["train"].pop("seed")) == (0, 1)
    assert one["checkpoint"].pop("folder") != two["checkpoint"].pop("folder")
    assert one == two
    assert one["train"]["resume"] == "auto"


def test_a_failed_cell_may_change_and_a_begun_one_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaokd.comparison.work.run_command", lambda *_: (1, "words"))
    first = Cell(load_recipe(write(tmp_path, folder=str(tmp_path / "grid"))), "okd", 0)
    with pytest.raises(Exception, match=r"exit status 1 of\n(.|\n)*megaokd train (.|\n)*words"):
        first.run(print)
    changed = write(tmp_path, folder=str(tmp_path / "grid"), methods__okd__objective={"temperature": 2.0})
    cell = Cell(load_recipe(changed), "okd", 0)
    cell.check_unchanged()
    (cell.folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"okd, seed 0: .*training was done \(config.objective: 'absent' -> "):
        cell.check_unchanged()


def test_a_second_comparison_in_a_folder_is_refused(tmp_path: Path) -> None:
    with only_one(tmp_path / "grid"):
        words = rf"grid: another comparison is running there \(process {os.getpid()} on "
        with pytest.raises(UserError, match=words), only_one(tmp_path / "grid"):
            pass
        with only_one(tmp_path / "other"):
            pass
    with only_one(tmp_path / "grid"):
        pass


def test_interval_is_students() -> None:
    measured = Measured((1.0, 2.0, 4.0))
    assert measured.mean == pytest.approx(7 / 3)
    # t(0.975, 2) = 4.302653; standard deviation sqrt(7/3)
    assert measured.interval == pytest.approx(4.302653 * math.sqrt(7 / 3) / math.sqrt(3), rel=1e-6)
    assert Measured((1.0,)).interval is None


def test_missing_matplotlib_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'megaokd\[report\]'"):
        check_matplotlib()


def test_responses_of_the_teacher_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By commands that exist, for both seeds and for what is like it; other ones are refused once there are some."""
    commands: list[list[str]] = []

    def pretend(words: list[str], write: Any, processes: int = 1) -> None:
        commands.append(words)
        output = Path(words[words.index("--output") + 1])
        if words[1] == "generate":
            assert generate_command._parser().parse_args(words[2:]).temperature == 0.7
            output.touch()
        else:
            output.mkdir()

    monkeypatch.setattr(responses, "must", pretend)
    seqkd: dict[str, Any] = {"method": "sft", "responses": {"prompts": "train.jsonl", "temperature": 0.7}}
    search = {"candidates": {"optimizer.student.lr": [0.1]}}
    values = {"methods__seqkd": seqkd, "methods__on_both": {"like": "seqkd", "method": "forward_kl"}}
    values |= {"folder": str(tmp_path / "grid"), "base__data__validation": "d", "base__train__validate_every": 1}
    recipe = load_recipe(write(tmp_path, **values))
    written, *others = all_work(recipe)
    assert (written.name, written.finished) == ("seqkd, responses", False)
    for name in ("seqkd", "on_both"):
        assert [work.name for work in Cell(recipe, name, 1).sources] == ["seqkd, responses"]
    assert Cell(recipe, "sft", 0).sources == []
    assert "seqkd, responses" not in [work.name for work in others]
    written.run(print)
    assert written.finished
    assert [words[1] for words in commands] == ["generate", "preprocess"]
    for name, seed in (("seqkd", 0), ("seqkd", 1), ("on_both", 0)):
        training = Cell(recipe, name, seed).parts()["training"]
        assert Path(training["config"]["data"]["train"]).is_dir()
        assert training["generation"]["temperature"] == 0.7
    searching = load_recipe(write(tmp_path, **values | {"methods__seqkd": {**seqkd, "search": search}}))
    assert [work.name for work in SearchRun(searching, "seqkd").sources] == ["seqkd, responses"]

    seqkd["responses"] |= {"batch": 4, "temperature": 0.7}  # as many at a time as one likes
    load_and_check(tmp_path, values)
    seqkd["responses"]["temperature"] = 0.8
    with pytest.raises(UserError, match=r"seqkd, responses: .* generation was done \(temperature: 0.7 -> 0.8\)"):
        load_and_check(tmp_path, values)


def load_and_check(folder: Path, values: dict[str, Any]) -> None:
    all_work(load_recipe(write(folder, **values)))[0].check_unchanged()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods__seqkd__data": {"sequence_length": 17}}, "'seqkd' differs from 'sft' in data"),
        ({"base__teacher": {}, "methods__okd": {"method": "sft"}}, "seqkd.responses are those of the teacher of base"),
        ({"methods__seqkd__responses__tensor": 2}, "seqkd.responses.tensor = 2 does not divide processes = 1"),
        ({"methods__seqkd__like": "sft"}, "seqkd has its responses from 'sft' or its own"),
        ({"methods__seqkd__responses": {}}, "prompts"),
        ({"methods__seqkd__data": {"train": "own"}}, "data.train of its own and trains on seqkd.responses;"),
        ({"methods__seqkd__set": {"data.train": "own"}}, "seqkd has a data.train of its own"),
        ({"methods__seqkd__set": {"data": {"train": "own"}}}, "seqkd has a data.train of its own"),
        ({"methods__seqkd__search": {"candidates": {"data.train": ["own"]}}}, "seqkd has a data.train of its own"),
        ({"methods__like": {"like": "seqkd", "data": {"train": "own"}}}, "like has a .* trains on seqkd.responses;"),
    ],
)
def test_wrong_responses_are_told(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    seqkd = {"method": "sft", "responses": {"prompts": "train.jsonl"}}
    file = write(tmp_path, **{"methods__seqkd": seqkd, **changes})
    with pytest.raises(UserError, match=words):
        load_recipe(file)
