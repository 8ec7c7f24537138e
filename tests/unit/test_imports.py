"""Imports run one way, and only the engine knows DeepSpeed."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A room may import itself and the rooms before it.
ORDER = [
    ["version", "errors", "exit_status", "option_types", "terms", "methods", "subcommand"],
    ["files"],
    ["agreement", "options", "summary"],
    ["config", "precision"],
    ["config_file"],
    ["mesh", "rank_watch"],
    ["data", "parallel"],
    ["models"],
    ["distill", "generation"],
    ["sampling"],
    ["pipeline"],
    ["trunk_cache"],
    ["engine"],
    ["cost"],
    ["run"],
    ["callbacks", "export", "profiling", "signals"],
    ["export_teacher"],
    ["checkpoint", "samples"],
    ["validation", "export_checkpoint"],
    ["trainer"],
    ["train_command"],
    ["cli"],
    ["evaluation"],
    ["benchmark", "comparison", "planning"],
    ["tools"],
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def modules() -> Iterator[Path]:
    for folder in ("megaokd", "kernels", "tools"):
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if not path.is_relative_to(ROOT / ".venv"))


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names if node.module == "megaokd")
    return names


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[0] if parts[0] in ("kernels", "tools") else (parts[1] if len(parts) > 1 else "")


@pytest.mark.parametrize("path", list(modules()), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    room = room_of(path)
    names = imported(path)
    ours = {name.split(".")[1] for name in names if name.startswith("megaokd.")} - {"kernels"}
    if room == "kernels":
        assert not ours, f"kernels know nothing of megaokd, found {ours}"
        return
    for other in ours & RANK.keys():
        assert other == room or RANK[other] < RANK.get(room, -1) or room == "__init__", f"{room} imports {other}"
    if room != "engine":
        assert not any(name.split(".")[0] == "deepspeed" for name in names), "only the engine imports deepspeed"


def test_the_order_names_every_room() -> None:
    rooms = {room_of(path) for path in modules()} - {"kernels", "__init__"}
    assert rooms <= RANK.keys()
