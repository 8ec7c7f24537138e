"""The docstring corpus: what is taken from source code, and splits that share no module."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megaokd.cli import main
from megaokd.data.docstrings import INSTRUCTION, corpus_from_packages, module_pairs, package_pairs, write_corpus
from megaokd.errors import UserError

SOURCE = '''
import something_that_does_not_exist

def area(width: int, height: int = 1, *rest, scale=1.0, **options) -> float:
    """Return the area of a rectangle
    in square units.

    More about it.
    """

class Outer(Base):
    """Not a function."""

    async def fetch(self):
        """Fetch the outer thing from afar.

        Returns: it
        """

    class Inner:
        @property
        @cache(maxsize=3)
        def size(self):
            """The size of the inner thing.
            Returns:
                a number
            """

if True:
    def guarded():
        """Return what stands behind a condition."""
else:
    def unguarded():
        """Return what stands behind the other branch."""

try:
    pass
except ImportError:
    def fallback():
        """Return what is used when nothing else is."""

def __special__():
    """Return nothing that is special enough."""
def undocumented(): ...
def short():
    """Too short."""
def long():
    """LONG"""
def field():
    """name (str): the first paragraph is a parameter."""
def signature():
    """signature(first, second, third, fourth) -> result"""
def example():
    """Call it so: >>> example() or in another way"""
'''.replace("LONG", "word " * 100)


def test_what_is_taken_from_a_module() -> None:
    pairs = {pair.source: (pair.prompt, pair.response) for pair in module_pairs(SOURCE.encode(), "shapes")}
    assert pairs == {
        "shapes.area": (
            f"{INSTRUCTION}def area(width: int, height: int=1, *rest, scale=1.0, **options) -> float:\n",
            "Return the area of a rectangle in square units.",
        ),
        "shapes.Outer.fetch": (
            f"{INSTRUCTION}class Outer:\n    async def fetch(self):\n",
            "Fetch the outer thing from afar.",
        ),
        "shapes.Outer.Inner.size": (
            f"{INSTRUCTION}class Outer.Inner:\n    @property\n    def size(self):\n",
            "The size of the inner thing.",
        ),
        "shapes.guarded": (f"{INSTRUCTION}def guarded():\n", "Return what stands behind a condition."),
        "shapes.unguarded": (f"{INSTRUCTION}def unguarded():\n", "Return what stands behind the other branch."),
        "shapes.fallback": (f"{INSTRUCTION}def fallback():\n", "Return what is used when nothing else is."),
    }


@pytest.mark.parametrize("source", [b"def broken(:\n", b"\0", b"# -*- coding: nonsense -*-\n"])
def test_a_file_that_does_not_parse_gives_nothing(source: bytes) -> None:
    assert list(module_pairs(source, "broken")) == []


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """120 modules; each says one thing of its own and one that all of them say. Importing it fails."""
    root = tmp_path / "corpus_package"
    (root / "tests").mkdir(parents=True)
    (root / "__init__.py").write_text("raise RuntimeError('imported')\n" + SOURCE)
    for name in ("tests/helper.py", "test_other.py", "conftest.py"):
        (root / name).write_text('def skipped():\n    """Return what only a test may see."""\n')
    for n in range(120):
        own = f'def own():\n    """Return thing {n} of module m{n}."""\n'
        common = f'def common():\n    """Return the COMMON thing; {"!" * (n % 3)}"""\n'
        (root / f"m{n}.py").write_text(own + common)
    monkeypatch.syspath_prepend(str(tmp_path))
    return root.name


def test_splits_share_no_module_and_no_response(package: str) -> None:
    splits = corpus_from_packages([package])
    modules = {name: {pair.module for pair in pairs} for name, pairs in splits.items()}
    assert modules["train"].isdisjoint(modules["validation"] | modules["test"])
    assert modules["validation"].isdisjoint(modules["test"])
    responses = [pair.response for pairs in splits.values() for pair in pairs]
    assert len(responses) == len(set(responses))
    assert sum("common" in response.casefold() for response in responses) == 1
    assert not any("only a test" in response for response in responses)
    assert sum(pair.source == f"{package}.area" for pairs in splits.values() for pair in pairs) == 1
    assert 100 < len(splits["train"]) < 127


def test_the_corpus_is_a_function_of_the_seed(package: str, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_corpus(corpus_from_packages([package], seed=seed), tmp_path / name)
    texts = {name: (tmp_path / name / "train.jsonl").read_text() for name in "abc"}
    assert texts["a"] == texts["b"] != texts["c"]
    assert list(json.loads(texts["a"].splitlines()[0])) == ["prompt", "response", "source"]


def test_a_limit_keeps_the_split_of_every_module(package: str) -> None:
    everything, some = corpus_from_packages([package]), corpus_from_packages([package], limit=80)
    assert sum(map(len, some.values())) == 80
    for name, pairs in some.items():
        assert pairs == everything[name][: len(pairs)]


def test_a_single_file_package() -> None:
    sources = [pair.source for pair in package_pairs("typing_extensions")]
    assert sources
    assert all(source.startswith("typing_extensions.") for source in sources)


def test_the_standard_library_gives_thousands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", "--output", str(tmp_path)]) == 0
    counts = {
        name: len((tmp_path / f"{name}.jsonl").read_text().splitlines()) for name in ("train", "validation", "test")
    }
    assert counts["train"] > 3000
    assert min(counts.values()) > 50
    assert all(f"{count} {name}" in capsys.readouterr().out for name, count in list(counts.items())[:1])


@pytest.mark.parametrize(
    ("packages", "message"),
    [
        (["no_such_package"], "no_such_package: no package of this name is installed"),
        (["os.path"], "'os.path': expected stdlib or the import name"),
        (["sys"], "sys: not written in Python"),
        ([], "0 pairs from no package leave the train split empty"),
        (["typing_extensions"], "pairs from typing_extensions leave the .* split empty; use more"),
    ],
)
def test_packages_that_give_nothing(packages: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        corpus_from_packages(packages)


@pytest.mark.parametrize("tool", ["corpus", "tokenizer", "preprocess"])
def test_a_tool_runs_as_a_script(tool: str) -> None:
    script = Path(__file__).parents[2] / "tools" / f"{tool}.py"
    result = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True)
    assert f"megaokd {tool}" in result.stdout
