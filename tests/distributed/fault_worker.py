"""`megaokd train` with a fault built in.

Usage: fault_worker.py FAULT RANKS STEP CONFIG.yaml [section.key=value ...], RANKS like 0 or 0,1.

half-a-file     SIGKILL of these ranks at that moment of the save of STEP
before-rename   these ranks stand still before that rename, and say so by a folder: the test kills all at one moment
none            no fault
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from megaokd.checkpoint import saving
from megaokd.train_command import main

STANDING = "standing-still"
"""The folder, beside that of the checkpoints, whose existence says that a rank stands still."""


def install(fault: str, step: int) -> None:
    write_shard, replace = saving.write_shard, Path.replace
    name = f"step-{step:08d}"

    def half_a_file(path: Path, tensors: Any) -> None:
        write_shard(path, tensors)
        if name in str(path):
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def rename(self: Path, target: Path) -> Path:
        if target.name == name:
            target.parent.with_name(STANDING).mkdir()
            threading.Event().wait()
        return replace(self, target)

    if fault == "half-a-file":
        saving.write_shard = half_a_file
    elif fault == "before-rename":
        Path.replace = rename  # type: ignore[method-assign]
    else:
        assert fault == "none"


if __name__ == "__main__":
    fault, ranks, step = sys.argv[1:4]
    if os.environ.get("RANK", "0") in ranks.split(","):
        install(fault, int(step))
    sys.exit(main(sys.argv[4:]))
