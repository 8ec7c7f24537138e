"""log.jsonl, read back."""

import json
from pathlib import Path
from typing import Any

JOURNAL_FILE = "log.jsonl"


def read_journal(folder: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl that hold, in order; none where there is no such file.

    A run that was killed and resumed, or started again from the beginning, does steps a second time: what the lines
    before said about those steps is left out. With `last_step` lines of later steps are left out too, and lines that
    belong to no step. A last line that is still being written is not read.
    """
    path = folder / JOURNAL_FILE
    content = path.read_bytes() if path.exists() else b""
    lines: list[dict[str, Any]] = []
    reached: dict[str, int] = {}
    for text in content[: content.rfind(b"\n") + 1].splitlines():
        line = json.loads(text)
        kind, step = line["kind"], line.get("step")
        if kind in ("train", "validation"):
            if step <= reached.get(kind, -1):
                lines = [old for old in lines if old.get("step", -1) < step]
                reached = {name: min(latest, step - 1) for name, latest in reached.items()}
            reached[kind] = step
        if last_step is None or (step is not None and step <= last_step):
            lines.append(line)
    return lines
