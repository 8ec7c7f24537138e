"""Reading a configuration: YAML, dotted overrides, and errors that name the key, the line and the nearest valid key."""

import dataclasses
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from megaokd.config import Config
from megaokd.errors import UserError
from megaokd.methods import METHODS, apply_method, forget_decided

KeyPath = tuple[str, ...]
Checked = TypeVar("Checked")
_WORDS = {
    "dataclass_type": "Input should be a section, a mapping of keys to values",
    "dict_type": "Input should be a mapping of keys to values",
    "tuple_type": "Input should be a list",
}
"""pydantic's kinds of errors whose own words name types of Python."""
_MERGE = "tag:yaml.org,2002:merge"
"""The key `<<`, which a mapping may have several of."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read `path`, apply `section.key=value` overrides (values are YAML), check every key and type.

    Raises:
        UserError: a missing or malformed file, an unknown or ill-typed key, a malformed override.
    """
    values, origins = read_yaml(path)
    if any(override.startswith("method=") and override.partition("=")[2] in METHODS for override in overrides):
        forget_decided(values)
    for override in overrides:
        _apply_override(values, override, origins)
    return _validate(values, origins, str(path))


def overridden(overrides: Sequence[str]) -> dict[str, Any]:
    """What overrides give, as sections, unchecked: `load_config` checks it.

    Raises:
        UserError: a malformed override.
    """
    values: dict[str, Any] = {}
    for override in overrides:
        _apply_override(values, override, {})
    return values


def parse_config(
    values: dict[str, Any], origins: dict[KeyPath, str] | None = None, source: str = "configuration"
) -> Config:
    """The same checks for values that are already in memory; `origins` say where each key came from."""
    return _validate(values, origins or {}, source)


def read_yaml(path: str | Path) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """The values of a file of sections, and of each key the file and the line.

    Raises:
        UserError: a missing or malformed file, a key that stands twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: the configuration cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = _expanded(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping of sections (data, train, ...), found {type(values).__name__}")
    return values, _key_origins(path, node)


def check_values(cls: type[Checked], values: dict[str, Any], origins: dict[KeyPath, str], source: str) -> Checked:
    """`values` as the pydantic dataclass `cls`.

    Raises:
        UserError: unknown, missing or ill-typed keys, each with its origin and the nearest valid key.
    """
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        problems = [_describe(cls, details, origins, source) for details in _one_branch_each(cls, error.errors())]
    raise UserError("; ".join(problems))


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration dataclass as plain values, for log files and checkpoints."""
    result: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return result


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """In words, the dotted keys in which two trees of values differ, those that only one has among them."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [f"{path}: {before!r} -> {now!r}"]
    keys = [*before, *(key for key in now if key not in before)]
    pairs = [(f"{path}.{key}".lstrip("."), before.get(key, "absent"), now.get(key, "absent")) for key in keys]
    return [text for name, one, other in pairs for text in differences(one, other, name)]


def split_key(key: str) -> KeyPath:
    """A dotted key's parts; the point in skew_forward_kl(0.1) separates nothing."""
    return tuple(re.split(r"\.(?![^(]*\))", key))


def set_value(values: dict[str, Any], parts: KeyPath, value: Any) -> None:
    """Set a key in place, its sections made where they are missing.

    Raises:
        ValueError: one of them is there and not a section.
    """
    target = values
    for part in parts[:-1]:
        if target.get(part) is None:
            target[part] = {}
        target = target[part]
        if not isinstance(target, dict):
            raise ValueError(f"{part} is not a section")
    target[parts[-1]] = value


def _apply_override(values: dict[str, Any], override: str, origins: dict[KeyPath, str]) -> None:
    key, separator, text = override.partition("=")
    parts = split_key(key)
    if not separator or not all(parts):
        raise UserError(f"override {override!r}: expected section.key=value, for example train.steps=100")
    try:
        set_value(values, parts, _expanded(yaml.safe_load(text)))
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: {text!r} is not a YAML value") from None
    except ValueError as error:
        raise UserError(f"override {override!r}: {error}") from None
    origin = f"override {override!r}"
    for below in [known for known in origins if known[: len(parts)] == parts]:
        del origins[below]  # what the file had there is replaced
    origins[parts] = origin
    for end in range(1, len(parts)):
        origins.setdefault(parts[:end], origin)  # a section that only the override names


def _expanded(value: Any) -> Any:
    """With the home folder in the place of ~: no shell has seen these values."""
    if isinstance(value, dict):
        return {key: _expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    return os.path.expanduser(value) if isinstance(value, str) and value.startswith("~/") else value


def _key_origins(file: Path, node: yaml.Node | None, prefix: KeyPath = ()) -> dict[KeyPath, str]:
    origins: dict[KeyPath, str] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, str(key.value))
            origin = f"{file}:{key.start_mark.line + 1}"
            if path in origins and key.tag != _MERGE:  # PyYAML would take the last one without a word
                raise UserError(
                    f"{origin}: the key {'.'.join(path)!r} is there already, at {origins[path]}; leave out one"
                )
            origins[path] = origin
            origins.update(_key_origins(file, value, path))
    return origins


def _validate(values: dict[str, Any], origins: dict[KeyPath, str], source: str) -> Config:
    try:
        values = apply_method(values)
    except ValueError as error:
        raise UserError(f"{origins.get(('method',), source)}: method={values['method']}: {error}") from None
    config = check_values(Config, values, origins, source)
    _check_teacher(values, origins, source)
    return config


def _check_teacher(values: dict[str, Any], origins: dict[KeyPath, str], source: str) -> None:
    """Refuse what only a teacher makes sense of where none is named: without one, training is on labels alone."""
    teacher = values.get("teacher") or {}
    if "path" in teacher:  # null: meant
        return
    terms = (values.get("objective") or {}).get("student") or {}
    asked: dict[KeyPath, Any] = {
        ("objective", "student", name): weight for name, weight in terms.items() if name != "ce"
    }
    asked |= {("teacher", name): value for name, value in teacher.items()}
    for key, value in asked.items():
        if value:
            raise UserError(
                f"{_origin(key, origins, source)}: {'.'.join(key)} needs a teacher, and there is no teacher.path; "
                "teacher.path=null says that training is on labels alone"
            )


def _origin(path: KeyPath, origins: dict[KeyPath, str], source: str) -> str:
    """Where a key came from, or the nearest section above it that has an origin."""
    return next((origins[path[:end]] for end in range(len(path), 0, -1) if path[:end] in origins), source)


def _one_branch_each(root: type[Any], errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Locations as keys, without the names of the branches of unions; of the branches the one that got furthest.

    A value that fits no branch fails in each of them. Branches that got equally far make one problem.
    """
    result: list[ErrorDetails] = []
    unions: dict[KeyPath, list[ErrorDetails]] = {}
    for details in errors:
        path, union = _without_branches(root, details["loc"])
        words = _WORDS.get(details["type"], details["msg"])
        (unions.setdefault(union, []) if union else result).append({**details, "loc": path, "msg": words})
    for key, found in unions.items():
        deepest = max(len(details["loc"]) for details in found)
        if deepest > len(key):
            result += [details for details in found if len(details["loc"]) == deepest]
        else:
            result.append({**found[0], "msg": "; or: ".join(details["msg"] for details in found)})
    return result


def _without_branches(root: type[Any], location: tuple[str | int, ...]) -> tuple[KeyPath, KeyPath]:
    """The keys of a location, and those that lead to the union in it; () where there is none."""
    current: Any = root
    path: KeyPath = ()
    union: KeyPath = ()
    for part in location:
        if part == "[key]":
            continue
        branches = [branch for branch in get_args(current) if branch is not type(None)] if _is_union(current) else []
        if len(branches) > 1:
            current, union = None, path  # this part is the name of a branch
            continue
        section = next((branch for branch in (current, *branches) if _is_dataclass(branch)), None)
        fields = {} if section is None else {field.name: field.type for field in dataclasses.fields(section)}
        current = fields.get(str(part))
        path = (*path, str(part))
    return path, union


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, UnionType)


def _describe(root: type[Any], details: ErrorDetails, origins: dict[KeyPath, str], source: str) -> str:
    path = tuple(str(part) for part in details["loc"])
    parent = _dataclass_at(root, path[:-1])
    where = _origin(path, origins, source)
    key = ".".join(path)
    if details["type"] in ("unexpected_keyword_argument", "extra_forbidden") and parent is not None:
        names = [field.name for field in dataclasses.fields(parent)]
        near = difflib.get_close_matches(path[-1], names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys here: {', '.join(names)}"
        return f"{where}: unknown key {key!r}; {hint}"
    if details["type"] == "missing":
        return f"{where}: the key {key!r} is required"
    return f"{where}: {key} = {details['input']!r}: {details['msg'].removeprefix('Value error, ')}"


def _dataclass_at(root: type[Any], path: KeyPath) -> type[Any] | None:
    """The dataclass that a dotted path leads to, looking through `X | None` and lists."""
    current: Any = root
    for part in path:
        fields = {field.name: field for field in dataclasses.fields(current)} if _is_dataclass(current) else {}
        if part not in fields:
            return current if _is_dataclass(current) else None
        # Numbers of a list's items are no fields: the path ends at the item.
        current = next(_dataclasses_in(fields[part].type), None)
        if current is None:
            return None
    return current if _is_dataclass(current) else None


def _dataclasses_in(annotation: Any) -> Iterator[type[Any]]:
    if _is_dataclass(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _dataclasses_in(argument)


def _is_dataclass(value: Any) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value)
