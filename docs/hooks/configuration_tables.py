"""The tables of docs/configuration.md, made from the dataclasses of the configuration.

A table stands between `<!-- keys of SECTION -->` and `<!-- end of keys -->`: a row for each field, with its type, its
default and its docstring. The site fills them in when it is built; the page in the repository is kept equal by

    python docs/hooks/configuration_tables.py

which rewrites it, and by a test.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from megaokd.config import Config

PAGE = Path(__file__).resolve().parents[1] / "configuration.md"
_TABLE = re.compile(r"(<!-- keys of ([\w.]+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
_WORDS = {str: "text", bool: "true or false", int: "integer", float: "number", Any: "any value"}
_MOST_NAMES = 5  # of a Literal; where there are more, the docstring lists them


def fill_tables(markdown: str) -> str:
    """The page with every table as the dataclasses have it."""
    return _TABLE.sub(lambda found: f"{found[1]}{table(found[2])}{found[3]}", markdown)


def table(section: str) -> str:
    """A row for each key of a section; for a key that is no section, such as `method`, its own."""
    cls, names = Config, None
    for name in section.split("."):
        below = _section_class(_annotations(cls)[name])
        if below is None:
            names = [name]
        else:
            cls = below
    rows = "".join(_row(cls, name) for name in (names or vars(cls)["__annotations__"]))
    return f"| key | type | default | meaning |\n|---|---|---|---|\n{rows}"


def sections(cls: type[Any] = Config, prefix: str = "") -> dict[str, type[Any]]:
    """Dotted name -> dataclass of every section below `cls`."""
    found: dict[str, type[Any]] = {}
    for name, annotation in _annotations(cls).items():
        below = _section_class(annotation)
        if below is not None:
            found |= {prefix + name: below, **sections(below, f"{prefix}{name}.")}
    return found


def field_docstrings(cls: type[Any]) -> dict[str, str]:
    """Field -> the text that stands below it in the source of `cls`, on one line."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(str(below.value.value).split())
    return found


def _row(cls: type[Any], name: str) -> str:
    meaning = field_docstrings(cls)[name].replace("|", r"\|")
    return f"| `{name}` | {_type(_annotations(cls)[name])} | {_default(cls, name)} | {meaning} |\n"


def _annotations(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _section_class(annotation: Any) -> type[Any] | None:
    """The dataclass of a field, looking through `X | None`."""
    branches = get_args(annotation) if _is_union(annotation) else (annotation,)
    return next((branch for branch in branches if dataclasses.is_dataclass(branch)), None)  # type: ignore[return-value]


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _type(annotation: Any) -> str:
    """What a user writes there, in words."""
    if _section_class(annotation) is not None:
        return "section"
    if _is_union(annotation):
        return ", or ".join(_type(branch) for branch in get_args(annotation) if branch is not types.NoneType)
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _type(arguments[0]) + _bounds(arguments[1:])
    if get_origin(annotation) is Literal:
        return _choice(arguments)
    if get_origin(annotation) is tuple:
        return "a list" if Ellipsis in arguments else f"{len(arguments)} values"
    if get_origin(annotation) is dict:
        return "mapping"
    return _WORDS[annotation]


def _choice(values: tuple[Any, ...]) -> str:
    if len(values) > _MOST_NAMES:
        return "a name"
    words = [f"`{value}`" for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _bounds(metadata: tuple[Any, ...]) -> str:
    limits = [limit for part in metadata if isinstance(part, FieldInfo) for limit in part.metadata]
    signs = {annotated_types.Gt: ">", annotated_types.Ge: ">=", annotated_types.Lt: "<", annotated_types.Le: "<="}
    words = [
        f"{sign} {getattr(limit, kind.__name__.lower()):g}"
        for kind, sign in signs.items()
        for limit in limits
        if isinstance(limit, kind)
    ]
    return f" {', '.join(words)}" if words else ""


def _default(cls: type[Any], name: str) -> str:
    field = next(field for field in dataclasses.fields(cls) if field.name == name)
    if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        return "required"
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, FieldInfo):
        value = value.get_default(call_default_factory=True)
    if dataclasses.is_dataclass(value):
        return "see below"
    plain = TypeAdapter(Any).dump_python(value, mode="json")
    text = yaml.safe_dump(plain, default_flow_style=True, sort_keys=False, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


if __name__ == "__main__":
    PAGE.write_text(fill_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
