"""What the documents say about keys, files and commands is true of the code."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml

from docs.hooks.configuration_tables import fill_tables, sections
from megaokd import config
from megaokd.cli import COMMANDS
from megaokd.comparison.entry import EntryOptions, Search
from megaokd.comparison.load import load_recipe
from megaokd.comparison.recipe import EvaluationOptions, Recipe
from megaokd.config_file import load_config, parse_config
from megaokd.mesh import data_parallel_size
from megaokd.methods import METHODS
from megaokd.models.architecture import DecoderArchitecture
from megaokd.pipeline.schedule import check_micro_batches
from megaokd.sampling.check import check_on_policy

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "kernels" / "README.md"]
ALL_RECIPES = sorted((ROOT / "launch_scripts" / "recipes").glob("*.yaml"))
COMPARISONS = [path for path in ALL_RECIPES if path.name.startswith("compare_")]
RECIPES = [path for path in ALL_RECIPES if path not in COMPARISONS]
QUICKSTART_VOCABULARY = 2048
SMALLEST = yaml.safe_load(re.findall(r"^```yaml\n(.*?)^```", CONFIGURATION, re.MULTILINE | re.DOTALL)[0])


def test_every_section_has_its_table() -> None:
    assert sorted(re.findall(r"<!-- keys of ([\w.]+) -->", CONFIGURATION)) == sorted(
        [*sections(), "method", "deepspeed"]
    )


def test_the_tables_are_those_of_the_dataclasses() -> None:
    assert fill_tables(CONFIGURATION) == CONFIGURATION, "run: python docs/hooks/configuration_tables.py"


@pytest.mark.parametrize("row", [
    "| `global_batch` | integer > 0 | `32` | Examples of a step over all processes; a multiple of `micro_batch` x",
    "| `lr` | number > 0 | `0.0001` | A tenth",
    "| `min_lr_ratio` | number >= 0, <= 1 | `0.1` |",
    "| `train` | text, or a list | required |",
    "| `online` | section | see below |",
    "| `cache` | section | `null` |",
    "| `kind` | `lora`, `bottleneck` or `head` | `lora` |",
    "| `student` | mapping | `{ce: 1.0, forward_kl: 1.0}` |",
    "| `method` | a name | `null` |",
])  # fmt: skip
def test_a_row_says_what_the_dataclass_says(row: str) -> None:
    assert f"\n{row}" in fill_tables(re.sub(r"^\|.*\n", "", CONFIGURATION, flags=re.MULTILINE))


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


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\b[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_yaml_blocks_are_configurations(document: Path, tmp_path: Path) -> None:
    """Whole ones, parts of one, or recipes of a comparison."""
    for number, block in enumerate(blocks(document.read_text(encoding="utf-8"), "yaml")):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        if "methods" in yaml.safe_load(block):
            load_recipe(path)
        else:
            path.write_text(yaml.safe_dump({**SMALLEST, **yaml.safe_load(block)}))
            load_config(path)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_configurations(recipe: Path) -> None:
    check_layout(load_config(recipe), processes=8 if recipe.stem.startswith("okd_") else 1)


@pytest.mark.parametrize("recipe", COMPARISONS, ids=lambda path: path.stem)
def test_recipes_of_comparisons_are_valid(recipe: Path) -> None:
    loaded = load_recipe(recipe)
    for name in loaded.methods:
        values = parse_config(loaded.values(name, loaded.seeds[0], Path("cell")))
        check_layout(values, loaded.processes)
        check_on_policy(values)


def test_every_key_of_a_comparison_is_documented() -> None:
    text = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
    documented_keys = set(re.findall(r"^\| `([\w.]+)` \|", text, flags=re.MULTILINE))
    keys = {field.name for field in dataclasses.fields(Recipe)} - {"evaluation"}
    keys |= {f"evaluation.{field.name}" for field in dataclasses.fields(EvaluationOptions)}
    keys |= {f"methods.NAME.{field.name}" for field in dataclasses.fields(EntryOptions)} - {"methods.NAME.search"}
    keys |= {f"methods.NAME.search.{field.name}" for field in dataclasses.fields(Search)}
    assert documented_keys == keys


def readme_runs() -> list[tuple[int, list[str]]]:
    """(processes, overrides) of every training command in the README."""
    runs = []
    for line in "".join(blocks(README, "bash")).splitlines():
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
