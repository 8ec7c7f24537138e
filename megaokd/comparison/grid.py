"""The grid: each method with each seed trained and evaluated once, what is finished left alone, a failure told."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaokd.checkpoint.state import MERGED_TEACHER_FOLDER, STUDENT_FOLDER, TEACHER_ADAPTER_FOLDER
from megaokd.comparison.recipe import TIMES, Recipe
from megaokd.comparison.responses import ResponsesRun, responses_of
from megaokd.comparison.search import SearchRun, read_choice
from megaokd.comparison.work import (
    CONFIG_FILE,
    PARTS_FILE,
    SUMMARY_FILE,
    Work,
    begun,
    check_same,
    cost,
    identity_of,
    must,
    output_of,
    read_json,
    train,
    trained,
    write_parts,
)
from megaokd.config_file import to_dict
from megaokd.evaluation.report import RESULT_FILE
from megaokd.files import write_json

CELL_FILE = "result.json"


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
    def evaluated(self) -> bool:
        """Whether `megaokd evaluate` has come to its end."""
        return (self.evaluation_folder / RESULT_FILE).is_file()

    @property
    def begun(self) -> bool:
        """Whether its run would go on from a checkpoint, or has ended."""
        return begun(self.folder)

    @property
    def identity(self) -> str:
        """Of its run; its evaluation is taken by nobody."""
        return identity_of(self.folder / SUMMARY_FILE)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return trained(self.folder) and self.evaluated and (self.folder / CELL_FILE).is_file()

    @property
    def sources(self) -> list[Work]:
        """The search that decides its settings, what it trains on, the cells that it takes time or teacher of."""
        searched, written = self.recipe.searched(self.method), responses_of(self.recipe, self.method)
        cells = [Cell(self.recipe, name, self.seed) for name in self.recipe.entries[self.method].options.sources]
        search = [SearchRun(self.recipe, searched)] if searched else []
        return [*search, *([written] if written else []), *cells]

    def parts(self) -> dict[str, Any]:
        """What decides the cell's result, by what would have to be done again. Its sources are finished."""
        options = self.recipe.entries[self.method].options
        training = {"config": self._config(), "processes": self.recipe.processes}
        if options.adapted_teacher_of:
            training["teacher_of"] = Cell(self.recipe, options.adapted_teacher_of, self.seed).parts()["training"]
        written = responses_of(self.recipe, self.method)
        if written is not None:
            training |= written.parts()
        evaluation = {**to_dict(self.recipe.evaluation), "teacher": self.recipe.teacher}
        del evaluation["tensor"]  # however a model is split, it is measured alike
        return {"training": training, "evaluation": evaluation}

    def check_unchanged(self) -> None:
        """Refuse another configuration than it was begun with, other options than it was evaluated with."""
        done = {"training": self.folder} if self.begun else {}
        done |= {"evaluation": self.evaluation_folder} if self.evaluated else {}
        check_same(self.name, self.folder / PARTS_FILE, self.parts(), done)

    def run(self, say: Callable[[str], None]) -> None:
        """Train from where it stands, evaluate, write the result; each only where it is not there yet.

        Raises:
            CellError: training or evaluation failed; `output.txt` of the cell holds all that they said.
        """
        say(self.name)
        parts = self.parts()
        with output_of(self.folder) as write:
            write_parts(self, parts)
            if not (trained(self.folder) and self.evaluated):
                self._make_teacher(write)
            if not trained(self.folder):
                train(self.folder, parts["training"]["config"], self.recipe.processes, write)
            if not self.evaluated:
                # One that was killed may have left a part of its files.
                shutil.rmtree(self.evaluation_folder, ignore_errors=True)
                must(self._evaluation_command(parts["training"]["config"]), write, self.recipe.processes)
        result = {"method": self.method, "seed": self.seed, **cost(self.folder)}
        write_json(self.folder / CELL_FILE, {**result, "evaluation": read_json(self.evaluation_folder / RESULT_FILE)})

    def _config(self) -> dict[str, Any]:
        searched = self.recipe.searched(self.method)
        chosen = read_choice(self.recipe, searched)["chosen"] if searched else None
        return self.recipe.values(self.method, self.seed, self.folder, chosen=chosen, steps=self._steps())

    def _steps(self) -> int | None:
        """As many updates of the one entry as take the other's training time; None: the base's."""
        options = self.recipe.entries[self.method].options
        if options.equal_time_of is None or options.like is None:
            return None
        time = TIMES[self.recipe.time]
        other, own = (cost(self.recipe.cell_folder(name, self.seed)) for name in (options.equal_time_of, options.like))
        return max(1, round(own["steps"] * other[time] / own[time]))

    def _make_teacher(self, write: Callable[[str], None]) -> None:
        """Export the adapted teacher that this cell starts with, once, beside the run that it is of."""
        name = self.recipe.entries[self.method].options.adapted_teacher_of
        if name is None:
            return
        source = self.recipe.cell_folder(name, self.seed)
        made, partial = source / MERGED_TEACHER_FOLDER, source / f"{MERGED_TEACHER_FOLDER}.partial"
        if not made.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            words = ["megaokd", "export", str(source / CONFIG_FILE), "teacher.cache=null"]
            words += ["--what", "merged-teacher", "--output", str(partial)]
            must(words, write, self.recipe.processes)
            partial.rename(made)

    def _evaluation_command(self, config: dict[str, Any]) -> list[str]:
        teacher = [] if self.recipe.teacher is None else ["--teacher", self.recipe.teacher]
        moved = self._moved_teacher(config)
        if teacher and moved is not None:
            teacher += ["--adapted-teacher", str(moved)]
        model = ["--model", str(self.folder / STUDENT_FOLDER), "--output", str(self.evaluation_folder)]
        return ["megaokd", "evaluate", *model, *teacher, *self.recipe.evaluation.arguments()]

    def _moved_teacher(self, config: dict[str, Any]) -> Path | None:
        """The teacher that this student had at the end, where it was not the recipe's."""
        source = self.recipe.entries[self.method].options.adapted_teacher_of
        if source is not None:
            return self.recipe.cell_folder(source, self.seed) / MERGED_TEACHER_FOLDER
        # An adapter belongs to the teacher that it was trained on, which a method may have replaced.
        adapter = self.folder / TEACHER_ADAPTER_FOLDER
        trained_on = (config.get("teacher") or {}).get("path")
        return adapter if adapter.is_dir() and trained_on == self.recipe.teacher else None


def cells(recipe: Recipe) -> Iterator[Cell]:
    """Seed by seed, so that an unfinished grid holds all methods."""
    return (
        Cell(recipe, method, seed)
        for seed in recipe.seeds
        for method in recipe.entries
        if seed in recipe.seeds_of(method)
    )


def all_work(recipe: Recipe) -> list[Work]:
    """Everything, each after its sources."""
    entries = recipe.entries.items()
    responses = [ResponsesRun(recipe, name) for name, entry in entries if entry.options.responses]
    searches = [SearchRun(recipe, name) for name, entry in entries if entry.options.search]
    return [*responses, *searches, *cells(recipe)]


def read_result(cell: Cell) -> dict[str, Any]:
    """What a finished cell measured."""
    return read_json(cell.folder / CELL_FILE)
