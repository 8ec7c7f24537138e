"""What the cells of a grid measured, gathered: means and intervals over seeds, curves over steps."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megaokd.callbacks.journal import read_journal
from megaokd.comparison.grid import Cell, cells, read_result
from megaokd.comparison.recipe import Recipe
from megaokd.comparison.responses import responses_of
from megaokd.comparison.search import SearchRun, read_choice
from megaokd.comparison.work import OWN_TEXT
from megaokd.evaluation.responses import Cost
from megaokd.evaluation.text_metrics import half_interval

# Key of evaluation.json, or of the cell's own result -> the column of the table.
MEASURES = {
    "cross_entropy": "cross-entropy",
    "forward_kl": "forward KL",
    "reverse_kl": "reverse KL",
    "top1_agreement": "agreement",
    "calibration_error": "ECE",
    "rouge_l": "ROUGE-L",
    "training_seconds": "training seconds",
    "training_cpu_seconds": "training CPU seconds",
}
JUDGED = ("cross_entropy", "forward_kl", "rouge_l")
"""Those that the report's figure of quality and its verdict show."""
ADAPTED = ("forward_kl", "reverse_kl", "top1_agreement")
"""Measured against the adapted teacher as well."""
Curve = dict[int, float]
"""Step -> value."""


def measures_of(recipe: Recipe) -> dict[str, str]:
    """`MEASURES`; of several sets of prompts each has its own ROUGE-L, with the set's name behind key and column."""
    sets = recipe.evaluation.prompts
    if not isinstance(sets, dict):
        return MEASURES
    measures: dict[str, str] = {}
    for key, column in MEASURES.items():
        measures |= {f"{key} {name}": f"{column} {name}" for name in sets} if key == "rouge_l" else {key: column}
    return measures


def kind_of(key: str) -> str:
    """The key in `MEASURES` of a measure: without the name of a set."""
    return key.partition(" ")[0]


def higher_is_better(key: str) -> bool:
    """Of all other measures the lowest is the best."""
    return kind_of(key) in ("top1_agreement", "rouge_l")


@dataclass(frozen=True)
class Measured:
    """A mean over seeds."""

    values: tuple[float, ...]
    """One a seed."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def interval(self) -> float | None:
        """Half the width of the 95% confidence interval (Student's t); None for one seed."""
        return half_interval(self.values)


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """A method's finished cells."""

    name: str
    seeds: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    measures: Mapping[str, Measured] = field(default_factory=dict)
    adapted: Mapping[str, Measured] = field(default_factory=dict)
    curves: Mapping[str, list[Curve]] = field(default_factory=dict)
    """Name in log.jsonl -> one curve a seed."""
    own_text: Mapping[str, Measured] = field(default_factory=dict)
    """Of `OWN_TEXT`, where it trained on text of its own."""
    written: Cost | None = None
    """What the teacher's responses that it trains on took, once for all seeds; None: it trains on the data's."""

    def writing_seconds(self, time: str) -> float | None:
        """What writing those took; `time`: a name of a training time, by the same measure."""
        return None if self.written is None else getattr(self.written, time.removeprefix("training_"))

    def common_seeds(self, other: "MethodResult") -> list[int]:
        """Seeds whose cells of both are finished."""
        return [seed for seed in self.seeds if seed in other.seeds]

    def difference(self, other: "MethodResult", key: str) -> Measured | None:
        """This method's measure minus the other's, seed by seed; None where one of them has no such measure."""
        if key not in self.measures or key not in other.measures:
            return None
        ours = dict(zip(self.seeds, self.measures[key].values, strict=True))
        theirs = dict(zip(other.seeds, other.measures[key].values, strict=True))
        return Measured(tuple(ours[seed] - theirs[seed] for seed in self.common_seeds(other)))


@dataclass(frozen=True, kw_only=True)
class Results:
    """The whole grid."""

    methods: list[MethodResult]
    environments: list[dict[str, str]]
    """Of each cell's evaluation."""
    failures: Mapping[str, str]
    """Cell -> its command and last lines."""
    evaluation: dict[str, Any]
    """Of one cell, for what all share; empty where none is finished."""
    measures: Mapping[str, str] = field(default_factory=lambda: MEASURES)
    """Those of the tables, key -> column."""
    searches: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Method -> its choice.json."""


def collect(recipe: Recipe, failures: Mapping[str, str]) -> Results:
    """Read what is finished."""
    finished = [cell for cell in cells(recipe) if cell.finished and cell.name not in failures]
    results = {cell: read_result(cell) for cell in finished}
    evaluations = [result["evaluation"] for result in results.values()]
    return Results(
        methods=[
            _method(recipe, name, {cell: result for cell, result in results.items() if cell.method == name})
            for name in recipe.methods
        ],
        environments=[evaluation["environment"] for evaluation in evaluations],
        failures=failures,
        evaluation=evaluations[0] if evaluations else {},
        measures=measures_of(recipe),
        searches={
            name: read_choice(recipe, name)
            for name, entry in recipe.entries.items()
            if entry.options.search and SearchRun(recipe, name).finished
        },
    )


def _method(recipe: Recipe, name: str, results: Mapping["Cell", dict[str, Any]]) -> MethodResult:
    measured = [{**result["evaluation"], **_of_sets(result["evaluation"]), **result} for result in results.values()]
    adapted = [result["evaluation"]["adapted"] or {} for result in results.values()]
    logs = [_curves(cell) for cell in results]
    responses = responses_of(recipe, name)
    return MethodResult(
        name=name,
        seeds=tuple(cell.seed for cell in results),
        steps=tuple(result["steps"] for result in results.values()),
        measures=_present(measured, tuple(measures_of(recipe))),
        adapted=_present(adapted, ADAPTED),
        curves={key: [log[key] for log in logs if key in log] for key in {key for log in logs for key in log}},
        own_text={name: value for name, value in _present(measured, OWN_TEXT).items() if value.mean > 0.0},
        written=responses.cost() if responses is not None and responses.finished else None,
    )


def _of_sets(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """Measures of each set of prompts, by their keys."""
    sets = evaluation.get("sets", {})  # evaluations of earlier versions have none
    return {f"{key} {name}": value for name, texts in sets.items() for key, value in texts.items()}


def _present(rows: list[dict[str, Any]], keys: tuple[str, ...]) -> dict[str, Measured]:
    """Keys that every row has a value for."""
    found = {key: [row[key] for row in rows if row.get(key) is not None] for key in keys}
    return {key: Measured(tuple(values)) for key, values in found.items() if values and len(values) == len(rows)}


def _curves(cell: Cell) -> dict[str, Curve]:
    """Every number of the run's log by step."""
    curves: dict[str, Curve] = {}
    for record in read_journal(cell.folder):
        if record["kind"] in ("train", "validation"):
            for name, value in record.items():
                if "/" in name:
                    curves.setdefault(name, {})[record["step"]] = value
    return curves
