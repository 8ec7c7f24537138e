"""A search of settings: a trial of each combination with one seed, judged by the validation data, the best one kept.

FOLDER/search/METHOD/trial-1/     a training run, without export or evaluation
FOLDER/search/METHOD/choice.json  every trial's settings and value, and what was chosen; once written, it stands
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaokd.callbacks.journal import JOURNAL_FILE, read_journal
from megaokd.comparison.entry import Search
from megaokd.comparison.recipe import Recipe
from megaokd.comparison.responses import responses_of
from megaokd.comparison.work import (
    PARTS_FILE,
    CellError,
    Work,
    begun,
    check_same,
    cost,
    identity_of,
    output_of,
    read_json,
    train,
    trained,
    write_parts,
)
from megaokd.config_file import to_dict
from megaokd.exit_status import ExitStatus
from megaokd.files import write_json

CHOICE_FILE = "choice.json"


@dataclass(frozen=True, eq=False)
class SearchRun:
    """The search of one method."""

    recipe: Recipe
    method: str

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.method}, search"

    @property
    def folder(self) -> Path:
        """Of the trials and the choice."""
        return self.recipe.search_folder(self.method)

    @property
    def options(self) -> Search:
        """What the recipe says."""
        search = self.recipe.entries[self.method].options.search
        assert search is not None
        return search

    @property
    def seed(self) -> int:
        """Of every trial."""
        return self.recipe.seeds[0] if self.options.seed is None else self.options.seed

    @property
    def begun(self) -> bool:
        """Whether a trial would go on from a checkpoint, or all have ended."""
        return self.finished or any(begun(folder) for _, folder in self.trials())

    @property
    def identity(self) -> str:
        """Of the choice."""
        return identity_of(self.folder / CHOICE_FILE)

    @property
    def finished(self) -> bool:
        """Whether there is a choice."""
        return (self.folder / CHOICE_FILE).is_file()

    @property
    def sources(self) -> list[Work]:
        """What its trials train on, where the teacher writes it."""
        written = responses_of(self.recipe, self.method)
        return [] if written is None else [written]

    def trials(self) -> list[tuple[dict[str, Any], Path]]:
        """Settings and folder of each."""
        return [
            (chosen, self.folder / f"trial-{number}")
            for number, chosen in enumerate(self.options.combinations(), start=1)
        ]

    def check_unchanged(self) -> None:
        """Refuse other settings, or another configuration, than its trials had."""
        check_same(self.name, self.folder / PARTS_FILE, self._parts(), {"search": self.folder} if self.begun else {})

    def run(self, say: Callable[[str], None]) -> None:
        """Train what trials are left, then choose. A trial that fails, as a too high setting may, cannot be chosen.

        Raises:
            CellError: a trial was interrupted, or none came to its end.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        write_parts(self, self._parts())
        rows = []
        for number, (chosen, folder) in enumerate(self.trials(), start=1):
            say(f"{self.name} {number}/{len(self.trials())}")
            rows.append({"settings": chosen, **self._try(chosen, folder)})
        values = [row["value"] for row in rows if row["value"] is not None]
        if not values:
            raise CellError(f"no trial came to its end; the first: {rows[0]['failure']}")
        best = min(values, key=self.options.rank)
        chosen = next(row["settings"] for row in rows if row["value"] == best)
        metric, seed = self.options.metric, self.seed
        write_json(self.folder / CHOICE_FILE, {"metric": metric, "seed": seed, "trials": rows, "chosen": chosen})

    def _try(self, chosen: dict[str, Any], folder: Path) -> dict[str, Any]:
        """A trial's value and cost, or how it failed."""
        try:
            with output_of(folder) as write:
                if not trained(folder):
                    train(folder, self._config(chosen, folder), self.recipe.processes, write)
        except CellError as error:
            if (
                error.status == ExitStatus.INTERRUPTED or error.status < 0
            ):  # a signal, which says nothing of the setting
                raise
            return {"value": None, "failure": str(error)}
        value = _last(folder, self.options.metric)
        if not math.isfinite(value):
            return {"value": None, "failure": f"{self.options.metric} is {value}"}
        return {"value": value, **cost(folder)}

    def _config(self, chosen: dict[str, Any], folder: Path) -> dict[str, Any]:
        values = self.recipe.values(self.method, self.seed, folder, chosen=chosen, steps=self.options.steps)
        values["checkpoint"]["export"] = False
        return values

    def _parts(self) -> dict[str, Any]:
        config = self._config({}, self.folder)
        written = responses_of(self.recipe, self.method)
        search = {"config": config, "processes": self.recipe.processes, **to_dict(self.options)}
        return {"search": search | ({} if written is None else written.parts())}


def read_choice(recipe: Recipe, method: str) -> dict[str, Any]:
    """What a finished search found."""
    return read_json(recipe.search_folder(method) / CHOICE_FILE)


def _last(folder: Path, metric: str) -> float:
    """The value of `metric` in the last record that has it.

    Raises:
        CellError: no record has.
    """
    records = read_journal(folder)
    values = [record[metric] for record in records if metric in record]
    if not values:
        known = sorted({name for record in records if record["kind"] == "validation" for name in record if "/" in name})
        raise CellError(
            f"search.metric: {folder / JOURNAL_FILE} has no {metric!r}; it has {', '.join(known)}",
            ExitStatus.INTERRUPTED,
        )
    return float(values[-1])
