"""What a new run is, as its checkpoints will tell it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megaokd.agreement import from_main
from megaokd.checkpoint.state import RunState
from megaokd.config import Config
from megaokd.models.folder_hash import teacher_hash
from megaokd.run import Run


def new_state(config: Config, run: Run) -> RunState:
    """The state before the first step. Collective: rank 0 reads the teacher's files, the others are told their hash."""
    path, folder = config.teacher.path, Path(config.checkpoint.folder)
    digest = from_main(lambda: teacher_hash(path, folder), run.mesh.saving) if path is not None else None
    return RunState(
        step=0,
        seed=config.train.seed,
        data_fingerprint=run.train_batches.fingerprint,
        global_batch=config.train.global_batch,
        sequence_length=config.data.sequence_length,
        teacher_path=config.teacher.path,
        teacher_hash=digest,
        models=_models(config, run),
    )


def _models(config: Config, run: Run) -> dict[str, Any]:
    """Both architectures and the online modules, as JSON gives them back."""
    student, teacher = run.models.student_architecture, run.models.teacher_architecture
    online = config.teacher.online if teacher is not None else None
    parts = {"student": student, "teacher": teacher, "teacher.online": online}
    values = {name: asdict(part) if part is not None else None for name, part in parts.items()}
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain
