"""What a checkpoint holds beside tensors, and where checkpoints lie.

FOLDER/checkpoints/step-00000200/    state.json and safetensors, complete by construction: renamed when written
FOLDER/checkpoints/step-...tmp       a save that was cut short; never read, removed by the next save
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megaokd.errors import UserError

FORMAT_VERSION = 1
STATE_FILE = "state.json"
STUDENT_FOLDER = "student"
"""Beside checkpoints/: the exported student, a Hugging Face folder."""
EXPORT_CHECK_FILE = "export_check.safetensors"
"""Beside it: tokens and the trained student's logits, to check the export by."""


@dataclass
class RunState:
    """Where a run stands. The position in the data and the schedules are functions of `step`."""

    step: int
    """Optimizer steps done; the next step has this number."""
    seed: int
    data_fingerprint: str
    global_batch: int
    sequence_length: int
    teacher_path: str | None
    teacher_hash: str | None
    """Of the teacher's weight files and architecture."""
    models: str
    """The shapes of both models and of the online modules."""
    best: dict[str, Any] = field(default_factory=dict)
    """The best validation so far: step and value; empty before the first."""
    validations_without_gain: int = 0
    validated_at: int = 0
    """The step of the last validation."""
    training_seconds: float = 0.0
    format_version: int = FORMAT_VERSION


def checkpoint_path(folder: Path, step: int) -> Path:
    """The folder of a complete checkpoint."""
    return folder / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("checkpoints/step-*") if path.suffix != ".tmp" and path.is_dir())


def write_state(path: Path, state: RunState) -> None:
    """Write state.json."""
    (path / STATE_FILE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")


def read_state(path: Path) -> RunState:
    """Read state.json of a complete checkpoint.

    Raises:
        UserError: the file is missing, damaged or of another version.
    """
    try:
        values = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        state = RunState(**values)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path / STATE_FILE}: cannot be read ({error}); remove {path} to resume from the one before"
        ) from None
    if state.format_version != FORMAT_VERSION:
        raise UserError(f"{path}: checkpoint format {state.format_version}, this version reads {FORMAT_VERSION}")
    return state


def prune(folder: Path, *, keep_last: int, best_step: int | None) -> None:
    """Remove checkpoints beyond the last `keep_last`, the best one aside, and saves that were cut short."""
    kept = {checkpoint_path(folder, best_step)} if best_step is not None else set()
    for path in list_checkpoints(folder)[:-keep_last]:
        if path not in kept:
            shutil.rmtree(path)
    for path in folder.glob("checkpoints/*.tmp"):
        shutil.rmtree(path)
