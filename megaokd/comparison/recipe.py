"""What `megaokd compare` reads: one base configuration, methods as what they change of it, seeds, how to evaluate."""

import copy
import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from megaokd.config import Config, NonNegative, Positive, PositiveFloat
from megaokd.config_file import KeyPath, check_values, parse_config, read_yaml
from megaokd.errors import UserError

_STRICT = ConfigDict(extra="forbid")
# Decided by the grid. Where the recipe decides it too, one of the two would be ignored.
_OWN_KEYS = {("checkpoint", "folder"), ("checkpoint", "export"), ("train", "seed"), ("train", "resume")}
_OWN_KEYS |= {("logging", "progress")}
TIMES = {"wall": "training_seconds", "cpu": "training_cpu_seconds"}
"""What training time may be measured by -> its name in summary.json."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class EvaluationOptions:
    """How each exported student is measured: the options of `megaokd evaluate`."""

    data: str
    """Tokenized data set."""
    generate: NonNegative = 0
    """Prompts to continue; 0: no ROUGE-L."""
    max_new_tokens: Positive = 64
    prompts: str | None = None
    """JSONL of prompts and references instead of the data set's own."""
    seeds: NonNegative = 0
    """Sampled generations of each prompt; 0: one greedy generation."""
    temperature: PositiveFloat = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_length: Positive | None = None
    max_batch_tokens: Positive = 4096

    def arguments(self) -> list[str]:
        """For the command line of `megaokd evaluate`."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        words = [(f"--{name.replace('_', '-')}", str(value)) for name, value in given.items() if value is not None]
        return [word for pair in words for word in pair]


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Recipe:
    """A whole comparison."""

    folder: str
    base: dict[str, Any]
    """A training configuration without what the grid decides."""
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Name -> what is merged over `base`."""
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)]
    evaluation: EvaluationOptions
    processes: Positive = 1
    """Of each training run; more than one are started by torchrun."""
    time: Literal["wall", "cpu"] = "wall"
    """What methods are compared by; both are in the table. cpu is for a machine that others use as well."""

    @property
    def teacher(self) -> str | None:
        """The folder of the teacher that every student is measured against."""
        path: str | None = (self.base.get("teacher") or {}).get("path")
        return path

    def values(self, method: str, seed: int) -> dict[str, Any]:
        """The configuration of one run, as it is written to its file."""
        own = {
            "train": {"seed": seed, "resume": "auto"},
            "checkpoint": {"folder": str(self.cell_folder(method, seed)), "export": True},
            "logging": {"progress": False},
        }
        return merged(merged(self.base, self.methods[method]), own)

    def cell_folder(self, method: str, seed: int) -> Path:
        """Where a run and its evaluation lie."""
        return Path(self.folder) / "cells" / method / f"seed-{seed}"


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe, and the configuration of each of its methods.

    Raises:
        UserError: a missing or malformed file; an unknown, missing or ill-typed key, in `base` and `methods` too;
            methods that would not share initial student, batches and number of updates.
    """
    values, origins = read_yaml(path)
    recipe = check_values(Recipe, values, origins, str(path))
    if len(set(recipe.seeds)) < len(recipe.seeds):
        raise UserError(f"{origins[('seeds',)]}: seeds = {list(recipe.seeds)}: one of them is there twice")
    configs = {name: _check_method(recipe, name, origins) for name in recipe.methods}
    first = next(iter(configs))
    for name, config in configs.items():
        where = origins.get(("methods", name), str(path))
        for what, ours, theirs in _shared(config, configs[first]):
            if ours != theirs:
                raise UserError(
                    f"{where}: method {name!r} differs from {first!r} in {what}; compared methods share initial "
                    "student, batches and number of updates: set it in base"
                )
    return recipe


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


def _check_method(recipe: Recipe, name: str, origins: dict[KeyPath, str]) -> Config:
    own, base = ("methods", name), ("base",)
    where = origins[own]
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r} is to name a folder: letters, digits, '_', '-' and '.'")
    for prefix in (base, own):
        for key in sorted(_OWN_KEYS):
            if (*prefix, *key) in origins:
                raise UserError(f"{origins[(*prefix, *key)]}: {'.'.join(key)} is decided for each run; leave it out")
    # A key of the method hides the base's of the same path.
    found = {key[1:]: origin for key, origin in origins.items() if key[:1] == base}
    found |= {key[2:]: origin for key, origin in origins.items() if key[:2] == own and len(key) > 2}
    return parse_config(recipe.values(name, recipe.seeds[0]), found, where)


def _shared(one: Config, other: Config) -> list[tuple[str, Any, Any]]:
    """What has to be equal: (its name, the one's, the other's)."""
    pairs = [("data", one.data, other.data), ("student", one.student, other.student)]
    keys = ("steps", "global_batch", "early_stopping")
    return [*pairs, *((f"train.{key}", getattr(one.train, key), getattr(other.train, key)) for key in keys)]
