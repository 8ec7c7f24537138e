"""(function signature -> first paragraph of its docstring) pairs from Python source code, parsed and never imported."""

import ast
import hashlib
import importlib.util
import json
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megaokd.errors import UserError

STDLIB = "stdlib"
INSTRUCTION = "Describe this function.\n"
"""The first line of every prompt."""

RESPONSE_CHARACTERS = (20, 400)
PROMPT_CHARACTERS = 400
SHARES = {"test": 0.05, "validation": 0.05, "train": 1.0}
"""Upper part of the unit interval that each split takes, after the ones before it."""

_SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "testing", "__pycache__", "idle_test"}
_SKIPPED_MODULE = re.compile(r"^(test_.*|.*_test|conftest)$")
_CONTEXT_DECORATORS = {"property", "staticmethod", "classmethod"}
_SIGNATURE_LINE = re.compile(r"^[\w.]+\(.*\)\s*(->.*)?$")
_SECTION_LINE = re.compile(
    r"^\s*(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?)\s*:?\s*$", re.MULTILINE
)
_FIELD = re.compile(r"^\w+( \(.*?\))?:(\s|$)")  # "name: ...", "name (type): ..."


@dataclass(frozen=True)
class Pair:
    """One example; `source` is the dotted name of the function."""

    prompt: str
    response: str
    source: str
    module: str


def corpus_from_packages(packages: Sequence[str], *, seed: int = 0, limit: int | None = None) -> dict[str, list[Pair]]:
    """The pairs of `packages` as train, validation and test; the same pairs for the same seed and installation.

    Responses that say the same words occur once in the whole corpus. A module belongs to one split as a whole, decided
    by a hash of its name, so evaluation never sees a module of training. The order is drawn by the seed.

    Args:
        packages: "stdlib" for the standard library, names of installed packages otherwise.
        seed: of the split, the order and the limit.
        limit: keep this many pairs of all splits together.

    Raises:
        UserError: a package that is not installed, or no pair at all in one of the splits.
    """
    pairs = list(_unique(pair for package in packages for pair in package_pairs(package)))
    pairs.sort(key=lambda pair: _hash(seed, pair.source, pair.response))
    splits: dict[str, list[Pair]] = {"train": [], "validation": [], "test": []}
    for pair in pairs[:limit]:
        splits[_split(pair.module, seed)].append(pair)
    for name, part in splits.items():
        if not part:
            found = min(len(pairs), limit or len(pairs))
            raise UserError(
                f"{found} pairs from {', '.join(packages) or 'no package'} leave the {name} split empty; use more"
            )
    return splits


def write_corpus(splits: dict[str, list[Pair]], folder: Path) -> None:
    """Write each split as `folder`/NAME.jsonl with the keys prompt, response, source."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in splits.items():
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for pair in pairs:
                record = {"prompt": pair.prompt, "response": pair.response, "source": pair.source}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")


def package_pairs(package: str) -> Iterator[Pair]:
    """The usable pairs of one package, in the order of its files.

    Raises:
        UserError: the package is not installed, or is not written in Python.
    """
    for module, path in _modules(package):
        yield from module_pairs(path.read_bytes(), module)


def module_pairs(source: bytes, module: str) -> Iterator[Pair]:
    """The usable pairs of one file; none where it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # other people's invalid escape sequences
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    yield from _pairs_in(tree.body, module, ())


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    """(dotted module name, file) of every module that is not a test, sorted by path."""
    root, prefix = _locate(package)
    if root.is_file():
        yield package, root
        return
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if _SKIPPED_FOLDERS.isdisjoint(relative.parts) and not _SKIPPED_MODULE.match(path.stem):
            parts = relative.with_suffix("").parts
            yield ".".join((*prefix, *(parts[:-1] if parts[-1] == "__init__" else parts))), path


def _locate(package: str) -> tuple[Path, tuple[str, ...]]:
    if package == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"]), ()
    if not package.isidentifier():
        raise UserError(f"{package!r}: expected {STDLIB} or the import name of a package, such as torch")
    spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
    if spec is None:
        raise UserError(f"{package}: no package of this name is installed here")
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations))), (package,)
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise UserError(f"{package}: not written in Python, there is nothing to read")
    return Path(spec.origin), (package,)


def _pairs_in(body: Iterable[ast.stmt], module: str, classes: tuple[str, ...]) -> Iterator[Pair]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _pairs_in(node.body, module, (*classes, node.name))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            pair = _pair(node, module, classes)
            if pair is not None:
                yield pair
        elif isinstance(node, ast.If | ast.Try):
            for block in (node.body, node.orelse, *(handler.body for handler in getattr(node, "handlers", ()))):
                yield from _pairs_in(block, module, classes)


def _pair(node: ast.FunctionDef | ast.AsyncFunctionDef, module: str, classes: tuple[str, ...]) -> Pair | None:
    special = node.name.startswith("__") and node.name.endswith("__")
    response = _first_paragraph(ast.get_docstring(node) or "")
    prompt = INSTRUCTION + _signature(node, classes)
    if special or not _usable(response) or len(prompt) > PROMPT_CHARACTERS:
        return None
    return Pair(prompt, response, ".".join((module, *classes, node.name)), module)


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, classes: tuple[str, ...]) -> str:
    """The lines from `class` (for a method) to the colon of `def`, ending in a newline."""
    lines = [f"class {'.'.join(classes)}:"] if classes else []
    indent = "    " if classes else ""
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Name) and decorator.id in _CONTEXT_DECORATORS:
            lines.append(f"{indent}@{decorator.id}")
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    lines.append(f"{indent}{keyword} {node.name}({ast.unparse(node.args)}){returns}:")
    return "\n".join(lines) + "\n"


def _first_paragraph(docstring: str) -> str:
    """Up to the first blank line or section heading, on one line."""
    paragraph = re.split(r"\n\s*\n", docstring.strip(), maxsplit=1)[0]
    return " ".join(_SECTION_LINE.split(paragraph, maxsplit=1)[0].split())


def _usable(response: str) -> bool:
    shortest, longest = RESPONSE_CHARACTERS
    return (
        shortest <= len(response) <= longest
        and response[0].isalpha()
        and len(response.split()) >= 4
        and ">>>" not in response
        and not _SIGNATURE_LINE.match(response)
        and not _FIELD.match(response)
    )


def _unique(pairs: Iterable[Pair]) -> Iterator[Pair]:
    seen: set[str] = set()
    for pair in pairs:
        words = " ".join(re.findall(r"\w+", pair.response.casefold()))
        if words not in seen:
            seen.add(words)
            yield pair


def _hash(seed: int, *parts: str) -> bytes:
    return hashlib.sha256("\0".join((str(seed), *parts)).encode()).digest()


def _split(module: str, seed: int) -> str:
    position = int.from_bytes(_hash(seed, module)[:8], "big") / 2**64
    for name, share in SHARES.items():
        if position < share:
            return name
        position -= share
    raise AssertionError("the last share is 1")
