"""Recipes of a comparison: what is merged, what is refused; means and intervals."""

import copy
import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaokd.comparison import figures
from megaokd.comparison.grid import Cell, check_unchanged, run_cell
from megaokd.comparison.lock import only_one
from megaokd.comparison.recipe import load_recipe, merged
from megaokd.comparison.results import Measured
from megaokd.errors import UserError

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


def line_of(file: Path, text: str) -> str:
    number = next(number for number, line in enumerate(file.read_text().splitlines(), start=1) if text in line)
    return f"{file}:{number}: "


@pytest.mark.parametrize(
    ("change", "value", "words"),
    [
        ("seed", [1], "unknown key 'seed'; did you mean 'seeds'?"),
        ("evaluation__generat", 3, "unknown key 'evaluation.generat'; did you mean 'generate'?"),
        ("evaluation__top_p", 1.5, "evaluation.top_p = 1.5"),
        ("base__train__stepz", 3, "unknown key 'train.stepz'; did you mean 'steps'?"),
        ("methods__okd__optimiser", {}, "unknown key 'optimiser'; did you mean 'optimizer'?"),
        ("methods__sft__method", "stf", "method = 'stf'"),
        ("base__train__seed", 7, "train.seed is decided for each run"),
        ("methods__okd__checkpoint", {"export": False}, "checkpoint.export is decided for each run"),
        ("methods__okd__train", {"steps": 4}, "method 'okd' differs from 'sft' in train.steps"),
        ("methods__okd__student", {"architecture": {"num_layers": 2}}, "method 'okd' differs from 'sft' in student"),
        ("methods__../up", {"method": "sft"}, "is to name a folder"),
        ("seeds", [1, 2, 1], "one of them is there twice"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, change: str, value: Any, words: str) -> None:
    file = write(tmp_path, **{change: value})
    with pytest.raises(UserError) as error:
        load_recipe(file)
    text = str(error.value)
    assert words in text
    # Sections that a method differs in are told at the method, other mistakes at their own key.
    key = "okd" if "differs" in words else change.split("__")[-1] if "decided" not in words else words.split(" ")[0]
    assert text.startswith(line_of(file, f"{key.split('.')[-1]}:"))


def test_a_method_is_merged_over_the_base_and_its_terms_replace_others() -> None:
    base = {"train": {"steps": 3, "seed": 0}, "objective": {"student": {"ce": 1.0}, "temperature": 2.0}}
    over = {"train": {"seed": 1}, "objective": {"student": {"jsd": 1.0}}}
    kept = copy.deepcopy((base, over))
    expected = {"train": {"steps": 3, "seed": 1}, "objective": {"student": {"jsd": 1.0}, "temperature": 2.0}}
    assert merged(base, over) == expected
    assert (base, over) == kept


def test_cells_differ_in_seed_and_folder_alone(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path))
    one, two = (recipe.values("okd", seed) for seed in recipe.seeds)
    assert (one["train"].pop("seed"), two["train"].pop("seed")) == (0, 1)
    assert one["checkpoint"].pop("folder") != two["checkpoint"].pop("folder")
    assert one == two
    assert one["train"]["resume"] == "auto"


def test_a_failed_cell_may_change_and_a_begun_one_may_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megaokd.comparison.grid.run_command", lambda *_: (1, "words"))
    first = Cell(load_recipe(write(tmp_path, folder=str(tmp_path / "grid"))), "okd", 0)
    with pytest.raises(Exception, match=r"exit status 1 of\n(.|\n)*megaokd train (.|\n)*words"):
        run_cell(first)
    changed = write(tmp_path, folder=str(tmp_path / "grid"), methods__okd__objective={"temperature": 2.0})
    cell = Cell(load_recipe(changed), "okd", 0)
    check_unchanged(cell)
    (cell.folder / "checkpoints").mkdir()
    with pytest.raises(UserError, match=r"okd, seed 0: .*training was done \(config.objective: 'absent' -> "):
        check_unchanged(cell)


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
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install 'megaokd\[report\]'"):
        figures.check_matplotlib()
