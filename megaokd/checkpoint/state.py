"""What a checkpoint says about its run, and which checkpoints there are and stay.

FOLDER/checkpoints/step-00000200/        state.json and safetensors, complete by construction: renamed when written
FOLDER/checkpoints/step-...tmp           a save that was cut short; never read, removed by the next save
FOLDER/checkpoints/step-...damaged       set aside by a resume that found it altered; never read or removed
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STUDENT_FOLDER = "student"
"""Beside checkpoints/: the exported student, a Hugging Face folder."""
TEACHER_ADAPTER_FOLDER = "teacher_adapter"
MERGED_TEACHER_FOLDER = "teacher"
EXPORT_CHECK_FILE = "export_check.safetensors"
"""Beside it: tokens and the trained student's logits, to check the export by."""
REPLAY = "on_policy.replay"
"""The name of the buffer of an adaptive `train.on_policy` among a checkpoint's tensors."""
PARTIAL, DAMAGED = ".tmp", ".damaged"

# What a checkpoint and the run that continues it must have in common: with any other value the step would stand for
# another position in the data, or the weights for another model.
_IDENTITY = ("seed", "data_fingerprint", "global_batch", "sequence_length", "teacher_hash")


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
    models: dict[str, Any]
    """The shapes of both models and of the online modules, as plain values; None for a part that is absent."""
    best: dict[str, Any] = field(default_factory=dict)
    """The best validation so far: step and value; empty before the first."""
    validations_without_gain: int = 0
    validated_at: int = 0
    """The step of the last validation."""
    on_policy: dict[str, float] = field(default_factory=dict)
    """Of an adaptive `train.on_policy`: its probability, its reference and the rows ever put into its buffer."""
    generated_steps: int = 0
    """Steps on text that the student has written itself (`train.on_policy`)."""
    replayed_steps: int = 0
    """Those of them whose text was of an earlier step."""
    training_seconds: float = 0.0
    """Wall clock, in training steps alone: no start, validation or waiting for a save."""
    training_cpu_seconds: float = 0.0
    """Of the processes' cores in the same steps, all threads, summed over ranks."""

    def differences(self, now: "RunState") -> list[str]:
        """In words, what this saved state and the present run do not have in common although they must."""
        saved = {**{name: getattr(self, name) for name in _IDENTITY}, **self.models}
        present = {**{name: getattr(now, name) for name in _IDENTITY}, **now.models}
        return [
            f"{name} was {old!r} when it was saved and is {new!r} now" for name, old, new in _different(saved, present)
        ]


def _different(saved: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old, new) of every value that differs. A field that an older version did not know is not one."""
    found: list[tuple[str, Any, Any]] = []
    for name, old in saved.items():
        new = now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _different(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append((prefix + name, old, new))
    return found


def checkpoint_path(folder: Path, step: int) -> Path:
    """The folder of a complete checkpoint."""
    return folder / "checkpoints" / f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("checkpoints/step-*") if not path.suffix and path.is_dir())


def step_of(path: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(path.stem.removeprefix("step-"))


def prune(folder: Path, *, keep_last: int, keep_every: int, best_step: int | None) -> None:
    """Remove checkpoints beyond the last `keep_last`, and saves that were cut short.

    Kept as well are the best one and, with `keep_every` > 0, every one whose step is a multiple of it.
    """
    for path in list_checkpoints(folder)[:-keep_last]:
        step = step_of(path)
        if step != best_step and not (keep_every and step % keep_every == 0):
            shutil.rmtree(path)
    for path in folder.glob(f"checkpoints/*{PARTIAL}"):
        shutil.rmtree(path)
