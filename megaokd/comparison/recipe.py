"""What `megaokd compare` reads: one base configuration, methods as what they change of it, seeds, how to evaluate."""

import copy
import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from megaokd.checkpoint.state import MERGED_TEACHER_FOLDER
from megaokd.comparison.entry import OPTION_KEYS, Entry, EntryOptions
from megaokd.config import NonNegative, Positive, PositiveFloat
from megaokd.config_file import KeyPath, set_value, split_key
from megaokd.methods import METHODS
from megaokd.option_types import SET_NAME

_STRICT = ConfigDict(extra="forbid")
TIMES = {"wall": "training_seconds", "cpu": "training_cpu_seconds"}
"""What training time may be measured by -> its name in summary.json."""


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class EvaluationOptions:
    """How each exported student is measured: the options of `megaokd evaluate`."""

    data: str
    """Tokenized data set."""
    generate: NonNegative = 0
    """Prompts to continue; 0: no ROUGE-L."""
    max_new_tokens: Positive = 64
    prompts: str | Annotated[dict[Annotated[str, Field(pattern=SET_NAME)], str], Field(min_length=1)] | None = None
    """JSONL of prompts and references instead of the data set's own; or name -> such a file, for several sets."""
    seeds: NonNegative = 0
    """Sampled generations of each prompt; 0: one greedy generation."""
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_length: Positive | None = None
    max_batch_tokens: Positive = 4096
    tensor: Positive = 1
    """Processes that a model is split over; what is left of the recipe's shares the data."""

    def arguments(self) -> list[str]:
        """For the command line of `megaokd evaluate`."""
        words: list[str] = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            values = [f"{name}={file}" for name, file in value.items()] if isinstance(value, dict) else [str(value)]
            words += [] if value is None else [f"--{field.name.replace('_', '-')}", *values]
        return words

    @property
    def prompt_files(self) -> list[str]:
        """What `prompts` names."""
        if self.prompts is None:
            return []
        return [self.prompts] if isinstance(self.prompts, str) else list(self.prompts.values())


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Recipe:
    """A whole comparison."""

    folder: str
    base: dict[str, Any]
    """A training configuration without what the grid decides."""
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Name -> `EntryOptions`, and what is merged over `base`."""
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    evaluation: EvaluationOptions
    processes: Positive = 1
    """Of each training run and evaluation; more than one are started by torchrun."""
    time: Literal["wall", "cpu"] = "wall"
    """What methods are compared by; both are in the table. cpu is for a machine that others use as well."""

    reference: str | None = None
    """The method that the others are compared with seed by seed; null: no such table."""

    @property
    def teacher(self) -> str | None:
        """The folder of the teacher that every student is measured against."""
        path: str | None = (self.base.get("teacher") or {}).get("path")
        return path

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """The methods, what is the grid's apart from what is the run's. In order: an entry's sources come before it."""
        parse = TypeAdapter(EntryOptions).validate_python
        entries = {
            name: Entry(
                parse({key: value for key, value in values.items() if key in OPTION_KEYS}),
                {key: value for key, value in values.items() if key not in OPTION_KEYS},
            )
            for name, values in self.methods.items()
        }
        ordered: dict[str, Entry] = {}

        def add(name: str) -> None:
            for source in entries[name].options.sources:
                if source not in ordered:
                    add(source)
            ordered[name] = entries[name]

        for name in entries:
            add(name)
        return ordered

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """Those that a method is run with."""
        return self.entries[method].options.seeds or self.seeds

    def searched(self, method: str) -> str | None:
        """The entry whose search decides something of this method: itself, or the one that it is like."""
        return self._has(method, "search")

    def responding(self, method: str) -> str | None:
        """The entry whose responses of the teacher this method trains on: itself, or the one that it is like."""
        return self._has(method, "responses")

    def _has(self, method: str, option: str) -> str | None:
        names = (self.entries[method].options.like, method)
        return next((name for name in names if name and getattr(self.entries[name].options, option)), None)

    def values(
        self,
        method: str,
        seed: int,
        folder: Path,
        *,
        chosen: Mapping[str, Any] | None = None,
        steps: int | None = None,
    ) -> dict[str, Any]:
        """The configuration of one run, as it is written to its file.

        chosen: dotted key -> value, by the search of `searched(method)`. steps: instead of the base's.
        """
        entry = self.entries[method]
        below = self.base
        if entry.options.like:
            below = _with(merged(below, self.entries[entry.options.like].config), chosen or {})
            chosen = None
        values = _with(_with(merged(below, entry.config), chosen or {}), entry.options.set or {})
        teacher = entry.options.adapted_teacher_of
        if teacher is not None:
            path = self.cell_folder(teacher, seed) / MERGED_TEACHER_FOLDER
            values = merged(values, {"teacher": {"path": str(path), "online": None}})
        writer = self.responding(method)
        if writer is not None:
            values = merged(values, {"data": {"train": str(self.responses_data(writer))}})
        own: dict[str, Any] = {
            "train": {"seed": seed, "resume": "auto"} | ({} if steps is None else {"steps": steps}),
            "checkpoint": {"folder": str(folder), "export": True},
            "logging": {"progress": False},
        }
        return merged(values, own)

    def cell_folder(self, method: str, seed: int) -> Path:
        """Where a run and its evaluation lie."""
        return Path(self.folder) / "cells" / method / f"seed-{seed}"

    def responses_folder(self, method: str) -> Path:
        """Where the teacher's responses of an entry that has some lie."""
        return Path(self.folder) / "responses" / method

    def responses_data(self, method: str) -> Path:
        """The data set that they become."""
        return self.responses_folder(method) / "data"

    def search_folder(self, method: str) -> Path:
        """Where its trials and their outcome lie."""
        return Path(self.folder) / "search" / method


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` over `below`, section by section; an objective's side is replaced whole, as its terms are a choice."""
    return _merge(below, above, ())


def _merge(below: dict[str, Any], above: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    result = copy.deepcopy(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        whole = path == ("objective",)
        result[key] = _merge(result[key], value, (*path, key)) if both and not whole else copy.deepcopy(value)
    return result


def _with(values: dict[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """With chosen settings. One term of the modules' is set among those that a named method gives them."""
    if not chosen:
        return values
    result = copy.deepcopy(values)
    method = METHODS.get(result.get("method") or "")
    if method is not None and method.teacher and any(key.startswith("objective.teacher.") for key in chosen):
        objective = result.setdefault("objective", {})
        objective.setdefault("teacher", dict(method.teacher))
    for key, value in chosen.items():
        set_value(result, split_key(key), copy.deepcopy(value))
    return result
