"""TensorBoard events: scalars in numbered groups, of which the first answers what is asked first."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter

from megaokd.callbacks.base import Callback, StepRecord, ValidationRecord, WarningRecord

_OVERVIEW = {
    "train/student_ce": "learning_ce_train",
    "validation/student_ce": "learning_ce_validation",
    "validation/top1_agreement": "learning_top1_agreement",
    "speed/tokens_per_second": "speed_tokens_per_second",
    "speed/step_seconds": "speed_step_seconds",
    "speed/data_seconds": "speed_data_seconds",
    "validation/teacher_drift": "teacher_drift",
    "validation/teacher_ce": "teacher_ce",
    "validation/original_teacher_ce": "teacher_ce_original",
}
"""What the first group shows, a row for each question: TensorBoard opens two groups of cards and sorts by name."""
_GROUPS = {
    "train": "2_train",
    "validation": "3_validation",
    "gradient_norm": "4_optimizer",
    "learning_rate": "4_optimizer",
    "speed": "5_machine",
    "memory": "5_machine",
    "on_policy": "2_train",
}
_OVERLAID: dict[str, dict[str, tuple[str, ...]]] = {
    "Is it learning?": {
        name: (f"train/{name}", f"validation/{name}") for name in ("student_ce", "forward_kl", "top1_agreement")
    },
    "Is the teacher drifting?": {
        "teacher_ce": ("train/teacher_ce", "validation/teacher_ce", "validation/original_teacher_ce"),
        "teacher_drift": ("train/teacher_drift", "validation/teacher_drift"),
    },
}
"""Charts of the tab Custom Scalars, training and validation in one."""


def tag(name: str) -> str:
    """The tag of what log.jsonl calls `name`: `validation/student_ce` is `1_overview/learning_ce_validation`."""
    if name in _OVERVIEW:
        return f"1_overview/{_OVERVIEW[name]}"
    return f"{_GROUPS[name.partition('/')[0]]}/{name.replace('/', '_')}"


class TensorBoard(Callback):
    """Writes to FOLDER/tensorboard; `tensorboard --logdir FOLDER` shows it."""

    def __init__(self, folder: Path, every: int, *, first_step: int, config: dict[str, Any]) -> None:
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1 if first_step else None)
        self._every = every
        text = yaml.safe_dump(config, sort_keys=False)
        self._writer.add_text("configuration", _indented(text), first_step)
        self._writer.add_custom_scalars(_charts())

    def on_step(self, record: StepRecord) -> None:
        if record.step % self._every == 0 or record.step == record.total_steps:
            for name, value in record.scalars().items():
                self._writer.add_scalar(tag(name), value, record.step)

    def on_validation(self, record: ValidationRecord) -> None:
        for name, value in record.metrics.items():
            self._writer.add_scalar(tag(name), value, record.step)
        if record.module_norms:
            norms = np.array(list(record.module_norms.values()))
            self._writer.add_histogram("6_online_modules/norm", norms, record.step, bins="auto")
        for number, sample in enumerate(record.samples):
            text = "".join(f"**{name}**\n\n{_indented(words)}\n" for name, words in asdict(sample).items())
            self._writer.add_text(f"samples/{number}", text, record.step)
        self._writer.flush()

    def on_warning(self, record: WarningRecord) -> None:
        self._writer.add_text("warnings", str(record), record.step)

    def close(self) -> None:
        self._writer.close()


def _indented(text: str) -> str:
    """As it is, in Markdown."""
    return "".join(f"    {line}\n" for line in text.splitlines() or [""])


def _charts() -> dict[str, dict[str, list[Any]]]:
    """The layout that `add_custom_scalars` takes: category -> chart -> kind and regular expressions, matched whole."""
    return {
        title: {chart: ["Multiline", [f"{tag(name)}$" for name in names]] for chart, names in charts.items()}
        for title, charts in _OVERLAID.items()
    }
