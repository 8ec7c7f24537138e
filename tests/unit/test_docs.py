"""What the documents say about keys, files and commands is true of the code."""

import dataclasses
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megaokd import config
from megaokd.cli import COMMANDS
from megaokd.comparison.recipe import EvaluationOptions, Recipe, load_recipe
from megaokd.config_file import load_config, parse_config, to_dict
from megaokd.mesh import data_parallel_size
from megaokd.methods import METHODS
from megaokd.models.architecture import DecoderArchitecture
from megaokd.pipeline.schedule import check_micro_batches

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "kernels" / "README.md"]
ALL_RECIPES = sorted((ROOT / "launch_scripts" / "recipes").glob("*.yaml"))
COMPARISONS = [path for path in ALL_RECIPES if path.name.startswith("compare_")]
RECIPES = [path for path in ALL_RECIPES if path not in COMPARISONS]
QUICKSTART_VOCABULARY = 2048


def sections(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, dataclass) of every section below `cls`, looking through `X | None`."""
    for field in dataclasses.fields(cls):
        kinds = [field.type, *getattr(field.type, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                yield prefix + field.name, kind
                yield from sections(kind, f"{prefix}{field.name}.")


def documented() -> dict[str, dict[str, str]]:
    """Section -> key -> the default's text, from the tables of docs/configuration.md."""
    tables: dict[str, dict[str, str]] = {}
    for part in re.split(r"^## ", CONFIGURATION, flags=re.MULTILINE)[1:]:
        title = part.splitlines()[0].strip("` ")
        rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", part, flags=re.MULTILINE)
        tables[title] = {key: default.strip() for key, default in rows}
    return tables


def test_every_section_is_documented() -> None:
    assert set(documented()) == {name for name, _ in sections(config.Config)} | {"deepspeed", "method"}


@pytest.mark.parametrize(("name", "cls"), list(sections(config.Config)))
def test_every_key_is_documented_with_its_default(name: str, cls: Any) -> None:
    rows = documented()[name]
    defaults = default_values(cls)
    if cls is config.OnlineGroup:  # its page lists what differs from the student's group
        student = default_values(config.OptimizerGroup)
        defaults = {key: value for key, value in defaults.items() if value != student[key]}
    assert rows.keys() == defaults.keys()
    for key, text in rows.items():
        if defaults[key] is dataclasses.MISSING:
            assert text == "required", f"{name}.{key}"
        elif isinstance(defaults[key], dict) and text == "see below":
            assert f"{name}.{key}" in documented()
        else:
            assert yaml.safe_load(text.strip("`")) == defaults[key], f"{name}.{key}"


def test_every_method_is_documented_with_its_terms() -> None:
    part = CONFIGURATION.partition("## `method`")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| `({.*?})` \| (.*) \|$", part, flags=re.MULTILINE)
    found = {name: (yaml.safe_load(student), modules) for name, student, modules in rows}
    assert found.keys() == METHODS.keys()
    for name, method in METHODS.items():
        student, modules = found[name]
        assert student == method.student, name
        if method.kind is not None:
            kind, terms = re.findall(r"`(.*?)`", modules)
            assert (kind, yaml.safe_load(terms)) == (method.kind, method.teacher), name
        assert modules.startswith("no teacher") == (not method.has_teacher)


def default_values(cls: Any) -> dict[str, Any]:
    """Key -> its default as a plain value, MISSING where the key is required."""
    plain = to_dict(parse_config({"data": {"train": "x"}, "train": {"steps": 1}, "checkpoint": {"folder": "x"}}))
    for part in next(name for name, kind in sections(config.Config) if kind is cls).split("."):
        plain = plain[part]
    if plain is None:  # a section that is absent by default
        plain = {field.name: field.default for field in dataclasses.fields(cls)}
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            plain[field.name] = dataclasses.MISSING
    return plain


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_blocks_are_configurations(document: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(document.read_text(encoding="utf-8"), "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        load_config(path)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_configurations(recipe: Path) -> None:
    check_layout(load_config(recipe), processes=8)


@pytest.mark.parametrize("recipe", COMPARISONS, ids=lambda path: path.stem)
def test_recipes_of_comparisons_are_valid(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    for name in loaded.methods:
        check_layout(parse_config(loaded.values(name, loaded.seeds[0])), loaded.processes)


def test_every_key_of_a_comparison_is_documented() -> None:
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    documented_keys = set(re.findall(r"^\| `([\w.]+)` \|", text, flags=re.MULTILINE))
    keys = {field.name for field in dataclasses.fields(Recipe)} - {"evaluation"}
    keys |= {f"evaluation.{field.name}" for field in dataclasses.fields(EvaluationOptions)}
    assert documented_keys == keys


def readme_runs() -> list[tuple[int, list[str]]]:
    """(processes, overrides) of every training command in the README."""
    runs = []
    for line in "".join(blocks(README, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if "train" in words and "my_run.yaml" in words:
            processes = [word.partition("=")[2] for word in words if word.startswith("--nproc-per-node=")]
            runs.append((int(processes[0]) if processes else 1, words[words.index("my_run.yaml") + 1 :]))
    return runs


@pytest.mark.parametrize(("processes", "overrides"), readme_runs())
def test_layouts_of_the_readme_fit(processes: int, overrides: list[str], tmp_path: Path) -> None:
    path = tmp_path / "my_run.yaml"
    path.write_text(blocks(README, "yaml")[0])
    check_layout(load_config(path, overrides), processes)


def check_layout(values: config.Config, processes: int) -> None:
    replicas = data_parallel_size(values.parallel, processes)
    per_step = values.train.micro_batch * replicas
    assert values.train.global_batch % per_step == 0
    check_micro_batches(values.parallel, values.train.global_batch // per_step)
    assert not values.parallel.sequence_parallel or values.data.bucket % values.parallel.tensor == 0
    student = DecoderArchitecture.from_config(values.student.architecture, QUICKSTART_VOCABULARY)
    stages = values.parallel.pipeline * values.parallel.virtual_stages
    student.check_layout("student", tensor=values.parallel.tensor, stages=stages)


def test_commands_of_the_readme_exist() -> None:
    named = set(re.findall(r"^megaokd (\w+)", README, flags=re.MULTILINE))
    assert named
    assert named <= COMMANDS.keys()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
