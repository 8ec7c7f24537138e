"""The grid: each method with each seed trained and evaluated once, what is finished left alone, a failure told."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megaokd.checkpoint.state import STUDENT_FOLDER, TEACHER_ADAPTER_FOLDER
from megaokd.comparison.recipe import TIMES, Recipe
from megaokd.config_file import to_dict
from megaokd.errors import UserError
from megaokd.evaluation.report import RESULT_FILE
from megaokd.subcommand import run_command, shown_command

CELL_FILE, CONFIG_FILE, OUTPUT_FILE, SUMMARY_FILE = "result.json", "config.yaml", "output.txt", "summary.json"
PARTS_FILE = "cell.json"


class CellError(Exception):
    """A command of a cell ended with another status than 0; its words are the command and its last lines."""


@dataclass(frozen=True, eq=False)
class Cell:
    """One method with one seed; a key of dicts by identity, as a recipe holds dicts itself."""

    recipe: Recipe
    method: str
    seed: int

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.method}, seed {self.seed}"

    @property
    def folder(self) -> Path:
        """Checkpoints, log and student of the run; its evaluation."""
        return self.recipe.cell_folder(self.method, self.seed)

    @property
    def evaluation_folder(self) -> Path:
        """As `megaokd evaluate` writes it."""
        return self.folder / "evaluation"

    @property
    def trained(self) -> bool:
        """Whether the run has reached its end: the summary is the last that it writes."""
        return (self.folder / SUMMARY_FILE).is_file()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.trained and (self.evaluation_folder / RESULT_FILE).is_file() and (self.folder / CELL_FILE).is_file()

    def parts(self) -> dict[str, Any]:
        """What decides the cell's result, by what would have to be done again."""
        training = {"config": self.recipe.values(self.method, self.seed), "processes": self.recipe.processes}
        evaluation = {**to_dict(self.recipe.evaluation), "teacher": self.recipe.teacher}
        return {"training": training, "evaluation": evaluation}


def cells(recipe: Recipe) -> Iterator[Cell]:
    """Seed by seed, so that an unfinished grid holds all methods."""
    return (Cell(recipe, method, seed) for seed in recipe.seeds for method in recipe.methods)


def check_unchanged(cell: Cell) -> None:
    """Refuse to mix results of two recipes.

    Raises:
        UserError: the cell was begun with another configuration, or evaluated with other options.
    """
    path = cell.folder / PARTS_FILE
    if not path.is_file():
        return
    before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(json.dumps(cell.parts()))
    done = {
        "training": cell.trained or (cell.folder / "checkpoints").is_dir(),
        "evaluation": (cell.evaluation_folder / RESULT_FILE).is_file(),
    }
    folders = {"training": cell.folder, "evaluation": cell.evaluation_folder}
    for part, folder in folders.items():
        if done[part] and before[part] != now[part]:
            changed = ", ".join(_differences(before[part], now[part]))
            raise UserError(
                f"{cell.name}: the recipe has changed since this cell's {part} was done ({changed}); give the recipe "
                f"another folder, or remove {folder} to have it done again"
            )


def run_cell(cell: Cell) -> None:
    """Train from where it stands, evaluate, write the result; each only where it is not there yet.

    Raises:
        CellError: training or evaluation did; `output.txt` of the cell holds all that they said.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    parts = cell.parts()
    _write_json(cell.folder / PARTS_FILE, parts)
    config = cell.folder / CONFIG_FILE
    config.write_text(yaml.safe_dump(parts["training"]["config"], sort_keys=False), encoding="utf-8")
    with (cell.folder / OUTPUT_FILE).open("a", encoding="utf-8") as output:

        def write(text: str) -> None:
            output.write(text)
            output.flush()

        if not cell.trained:
            _must(_training_command(cell.recipe.processes, config), write)
        if not (cell.evaluation_folder / RESULT_FILE).is_file():
            # One that was killed may have left a part of its files.
            shutil.rmtree(cell.evaluation_folder, ignore_errors=True)
            _must(_evaluation_command(cell), write)
    _write_json(cell.folder / CELL_FILE, {"method": cell.method, "seed": cell.seed, **_measured(cell)})


def read_result(cell: Cell) -> dict[str, Any]:
    """What `run_cell` wrote."""
    values: dict[str, Any] = json.loads((cell.folder / CELL_FILE).read_text(encoding="utf-8"))
    return values


def _training_command(processes: int, config: Path) -> list[str]:
    if processes == 1:
        return ["megaokd", "train", str(config)]
    return ["torchrun", "--standalone", f"--nproc-per-node={processes}", "-m", "megaokd.cli", "train", str(config)]


def _evaluation_command(cell: Cell) -> list[str]:
    teacher = [] if cell.recipe.teacher is None else ["--teacher", cell.recipe.teacher]
    # An adapter belongs to the teacher that it was trained on, which a method may have replaced.
    trained_on = (cell.parts()["training"]["config"].get("teacher") or {}).get("path")
    adapter = cell.folder / TEACHER_ADAPTER_FOLDER
    if teacher and adapter.is_dir() and trained_on == cell.recipe.teacher:
        teacher += ["--adapted-teacher", str(adapter)]
    model = ["--model", str(cell.folder / STUDENT_FOLDER), "--output", str(cell.evaluation_folder)]
    return ["megaokd", "evaluate", *model, *teacher, *cell.recipe.evaluation.arguments()]


def _must(command: list[str], write: Callable[[str], None]) -> None:
    shown = shown_command(command)
    write(f"$ {shown}\n")
    status, last_lines = run_command(command, write)
    if status != 0:
        raise CellError(f"exit status {status} of\n$ {shown}\nits last lines:\n{last_lines}")


def _measured(cell: Cell) -> dict[str, Any]:
    summary = json.loads((cell.folder / SUMMARY_FILE).read_text(encoding="utf-8"))
    evaluation = json.loads((cell.evaluation_folder / RESULT_FILE).read_text(encoding="utf-8"))
    return {**{name: summary[name] for name in ("steps", *TIMES.values())}, "evaluation": evaluation}


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """In words, the dotted keys in which two trees of values differ, those that only one has among them."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [f"{path}: {before!r} -> {now!r}"]
    keys = [*before, *(key for key in now if key not in before)]
    pairs = [(f"{path}.{key}".lstrip("."), before.get(key, "absent"), now.get(key, "absent")) for key in keys]
    return [text for name, one, other in pairs for text in _differences(one, other, name)]


def _write_json(path: Path, values: dict[str, Any]) -> None:
    """Complete or absent."""
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
