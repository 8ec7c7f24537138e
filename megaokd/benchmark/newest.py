"""The measurements that a page shows: of each subject the newest, in one JSON file beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def keep_newest(
    path: Path, entry: dict[str, Any], subject: str, order: Callable[[dict[str, Any]], Any]
) -> list[dict[str, Any]]:
    """Put `entry` in the place of the one with the same `entry[subject]`; all that there are now, by `order`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    others = [other for other in known if other[subject] != entry[subject]]
    entries = sorted([*others, entry], key=order)
    path.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return entries
