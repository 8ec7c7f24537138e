"""Reading a recipe: what it shows by itself to be wrong is named with its line; `preflight` looks at other files."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from megaokd.comparison.entry import OPTION_KEYS, EntryOptions
from megaokd.comparison.recipe import Recipe
from megaokd.config import Config
from megaokd.config_file import KeyPath, check_values, parse_config, read_yaml, split_key
from megaokd.errors import UserError

# Decided by the grid. Where the recipe decides it too, one of the two would be ignored.
_OWN_KEYS = {("checkpoint", "folder"), ("checkpoint", "export"), ("train", "seed"), ("train", "resume")}
_OWN_KEYS |= {("logging", "progress")}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def load_recipe(path: str | Path) -> Recipe:
    """Read and check a recipe, and the configuration of each of its methods.

    Raises:
        UserError: a missing or malformed file; an unknown, missing or ill-typed key, in `base` and `methods` too;
            methods that would not share initial student, batches and number of updates; an entry that takes something
            from another which has no such thing.
    """
    values, origins = read_yaml(path)
    if "methods" not in values and "train" in values:
        raise UserError(
            f"{path}: this is a training configuration, for `megaokd train`; `megaokd compare` takes a recipe, "
            "which has a configuration as its base (docs/compare.md)"
        )
    recipe = check_values(Recipe, values, origins, str(path))
    if len(set(recipe.seeds)) < len(recipe.seeds):
        raise UserError(f"{origins[('seeds',)]}: seeds = {list(recipe.seeds)}: one of them is there twice")
    if recipe.processes % recipe.evaluation.tensor:
        raise UserError(
            f"{origins[('evaluation', 'tensor')]}: evaluation.tensor = {recipe.evaluation.tensor} does not divide "
            f"processes = {recipe.processes}"
        )
    if recipe.reference is not None and recipe.reference not in recipe.methods:
        raise UserError(f"{origins[('reference',)]}: reference = {recipe.reference!r} is no method of this recipe")
    for key in ("prompts", "seeds"):
        if getattr(recipe.evaluation, key) and recipe.evaluation.generate == 0:
            raise UserError(f"{origins[('evaluation', key)]}: evaluation.{key} needs evaluation.generate above 0")
    options = _check_options(recipe, origins)
    configs = {name: _check_method(recipe, name, options, origins) for name in recipe.methods}
    _check_shared(recipe, configs, origins)
    for name in recipe.methods:
        where = origins[("methods", name)]
        _check_adapted_teacher(name, options[name], configs, where)
        _check_from_teacher(recipe, name, configs[name], where)
        _check_responses(recipe, name, where)
        _check_search(recipe, name, configs[name], where)
    return recipe


def _check_options(recipe: Recipe, origins: dict[KeyPath, str]) -> dict[str, EntryOptions]:
    """Types first, then names of other entries: without these a recipe has no order."""
    found = {}
    for name, values in recipe.methods.items():
        own = {key[2:]: origin for key, origin in origins.items() if key[:2] == ("methods", name)}
        given = {key: value for key, value in values.items() if key in OPTION_KEYS}
        found[name] = check_values(EntryOptions, given, own, origins[("methods", name)])
    for name, options in found.items():
        where = origins[("methods", name)]
        for key in ("like", "equal_time_of", "adapted_teacher_of"):
            other = getattr(options, key)
            if other is not None and (other not in found or other == name):
                others = ", ".join(entry for entry in found if entry != name)
                raise UserError(f"{where}: {name}.{key} = {other!r} is to be another method of this recipe: {others}")
        if options.equal_time_of and not options.like:
            raise UserError(f"{where}: {name}.equal_time_of needs {name}.like, whose seconds an update are known")
        if options.like and found[options.like].like:
            raise UserError(f"{where}: {name}.like = {options.like!r}, which is itself like another; name that one")
        for key in ("search", "responses"):
            if options.like and getattr(options, key):
                raise UserError(
                    f"{where}: {name} has its {key} from {options.like!r} or its own; leave out like or {key}"
                )
        _check_seeds(recipe, name, found, where)
        _check_cycle(name, found, where)
    return found


def _check_seeds(recipe: Recipe, name: str, options: Mapping[str, EntryOptions], where: str) -> None:
    seeds = options[name].seeds or recipe.seeds
    for owner, known in [("the recipe", recipe.seeds)] + [
        (source, options[source].seeds or recipe.seeds) for source in options[name].sources
    ]:
        if not set(seeds) <= set(known):
            raise UserError(f"{where}: {name} has seeds {list(seeds)}, {owner} only {list(known)}; set {name}.seeds")


def _check_cycle(name: str, options: Mapping[str, EntryOptions], where: str) -> None:
    waiting, seen = [name], set()
    while waiting:
        for source in options[waiting.pop()].sources:
            if source == name:
                raise UserError(f"{where}: {name} takes something from itself, by way of {options[name].sources}")
            if source not in seen:
                seen.add(source)
                waiting.append(source)


def _check_method(
    recipe: Recipe, name: str, options: Mapping[str, EntryOptions], origins: dict[KeyPath, str]
) -> Config:
    where = origins[("methods", name)]
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: {name!r} is to name a folder: letters, digits, '_', '-' and '.'")
    like = options[name].like
    layers: list[KeyPath] = [("base",), *([("methods", like)] if like else []), ("methods", name)]
    found: dict[KeyPath, str] = {}
    for layer in layers:  # a key hides the lower layers' of the same path
        for key in sorted(_OWN_KEYS):
            if (*layer, *key) in origins:
                raise UserError(f"{origins[(*layer, *key)]}: {'.'.join(key)} is decided for each run; leave it out")
        found |= {
            key[len(layer) :]: origin
            for key, origin in origins.items()
            if key[: len(layer)] == layer and len(key) > len(layer)
        }
    set_here = options[name].set or {}
    for dotted in set_here:
        if split_key(dotted) in _OWN_KEYS:
            raise UserError(f"{where}: {name}.set: {dotted} is decided for each run; leave it out")
        parts = split_key(dotted)
        found |= {parts[: end + 1]: origins[("methods", name, "set")] for end in range(len(parts))}
    seed = recipe.seeds_of(name)[0]
    try:
        values = recipe.values(name, seed, recipe.cell_folder(name, seed))
    except ValueError as error:
        raise UserError(f"{where}: {name}.set: {error}") from None
    return parse_config(values, found, where)


def _check_shared(recipe: Recipe, configs: Mapping[str, Config], origins: dict[KeyPath, str]) -> None:
    first = next((name for name in configs if recipe.responding(name) is None), next(iter(configs)))
    for name, config in configs.items():
        if recipe.responding(name) is not None:  # other responses: that is what is compared
            config = replace(config, data=replace(config.data, train=configs[first].data.train))
        for what, ours, theirs in _shared(config, configs[first]):
            if ours != theirs:
                raise UserError(
                    f"{origins[('methods', name)]}: method {name!r} differs from {first!r} in {what}; compared methods "
                    "share initial student, batches and number of updates: set it in base"
                )


def _shared(one: Config, other: Config) -> list[tuple[str, Any, Any]]:
    """What has to be equal: (its name, the one's, the other's)."""
    pairs = [("data", one.data, other.data), ("student", one.student, other.student)]
    keys = ("steps", "global_batch", "early_stopping")
    return [*pairs, *((f"train.{key}", getattr(one.train, key), getattr(other.train, key)) for key in keys)]


def _check_adapted_teacher(name: str, options: EntryOptions, configs: Mapping[str, Config], where: str) -> None:
    source = options.adapted_teacher_of
    if source is None:
        return
    if configs[name].teacher.path is None:
        raise UserError(f"{where}: {name}.adapted_teacher_of: its method has no teacher; name one that has")
    teacher = configs[source].teacher
    if teacher.online is None or teacher.online.kind != "lora":
        raise UserError(
            f"{where}: {name}.adapted_teacher_of = {source!r}, whose modules cannot be merged into its teacher: that "
            "needs teacher.online.kind=lora"
        )


def _check_from_teacher(recipe: Recipe, name: str, config: Config, where: str) -> None:
    """A student that is made of the method's own teacher: of another one, or without one, it is another student."""
    if config.student.from_teacher is not None and config.teacher.path != recipe.teacher:
        raise UserError(
            f"{where}: {name} has not the teacher of base, so with student.from_teacher its student would start from "
            "other weights than the rest, or from none; export that student once and give it as student.path"
        )


def _check_responses(recipe: Recipe, name: str, where: str) -> None:
    options, writer = recipe.entries[name].options, recipe.responding(name)
    if writer is None:
        return
    candidates = options.search.candidates if options.search else {}
    own = {**recipe.entries[name].config, **(options.set or {}), **candidates}
    if "data.train" in own or "train" in (own.get("data") or {}):
        raise UserError(
            f"{where}: {name} has a data.train of its own and trains on {writer}.responses; leave out one of the two"
        )
    responses = options.responses
    if responses is None:
        return
    if recipe.teacher is None:
        raise UserError(f"{where}: {name}.responses are those of the teacher of base; give teacher.path there")
    if recipe.processes % responses.tensor:
        raise UserError(
            f"{where}: {name}.responses.tensor = {responses.tensor} does not divide processes = {recipe.processes}"
        )


def _check_search(recipe: Recipe, name: str, config: Config, where: str) -> None:
    search = recipe.entries[name].options.search
    if search is None:
        return
    if config.data.validation is None or config.train.validate_every == 0:
        raise UserError(f"{where}: {name}.search chooses by the validation data: set data.validation, validate_every")
    if Path(recipe.evaluation.data).resolve() == Path(config.data.validation).resolve():
        raise UserError(
            f"{where}: {name}.search chooses on {config.data.validation}, which is evaluation.data too; what is "
            "reported has to be measured on other data"
        )
    seed = recipe.seeds[0] if search.seed is None else search.seed
    for chosen in search.combinations():
        words = f"{where}: {name}.search, {', '.join(f'{key} = {value}' for key, value in chosen.items())}"
        try:
            values = recipe.values(name, seed, recipe.search_folder(name), chosen=chosen, steps=search.steps)
        except ValueError as error:
            raise UserError(f"{words}: {error}") from None
        tried = parse_config(values, {}, words)
        for what, ours, theirs in _shared(tried, config):
            if what != "train.steps" and ours != theirs:
                raise UserError(f"{words}: compared methods share {what}")
