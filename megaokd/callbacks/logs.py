"""The log on disk: log.jsonl, one object a line."""

import json
from dataclasses import asdict
from pathlib import Path

from megaokd.callbacks.base import Callback, CheckpointRecord, StepRecord, ValidationRecord, WarningRecord
from megaokd.callbacks.journal import JOURNAL_FILE
from megaokd.files import drop_torn_line


class JsonLog(Callback):
    """Appends to FOLDER/log.jsonl: `{"kind": "train", "step": ..., ...}`, flushed line by line."""

    def __init__(self, folder: Path, every: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / JOURNAL_FILE
        drop_torn_line(path)
        self._file = path.open("a", encoding="utf-8")
        self._every = every

    def on_step(self, record: StepRecord) -> None:
        if record.step % self._every == 0 or record.step == record.total_steps:
            self._write({"kind": "train", "step": record.step, **record.scalars()})

    def on_validation(self, record: ValidationRecord) -> None:
        self._write({"kind": "validation", "step": record.step, "seconds": record.seconds, **record.metrics})
        if record.module_norms:
            self._write({"kind": "modules", "step": record.step, "norms": record.module_norms})
        if record.samples:
            samples = [asdict(sample) for sample in record.samples]
            self._write({"kind": "samples", "step": record.step, "samples": samples})

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        self._write({"kind": "checkpoint", **asdict(record)})

    def on_warning(self, record: WarningRecord) -> None:
        words = {"warning": record.kind, "seen": record.seen, "advice": record.advice}
        self._write({"kind": "warning", "step": record.step, **words})

    def on_message(self, text: str) -> None:
        self._write({"kind": "message", "text": text})

    def close(self) -> None:
        self._file.close()

    def _write(self, values: dict[str, object]) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
