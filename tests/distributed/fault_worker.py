"""`megaokd train` with a fault built in.

Usage: fault_worker.py FAULT RANKS STEP CONFIG.yaml [section.key=value ...], RANKS like 0 or 0,1.

half-a-file, before-rename   SIGKILL of these ranks at that moment of the save of STEP
none                         no fault
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from megaokd.train_command import main


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def install(fault: str, step: int) -> None:
    write_data, replace = HuggingFaceStorageWriter.write_data, Path.replace
    name = f"step-{step:08d}"

    def half_a_file(self: Any, *arguments: Any) -> Any:
        done = write_data(self, *arguments)
        if name in str(self.path):
            for path in Path(self.path).glob(f"shard-{int(os.environ['RANK']) + 1:05d}*"):
                os.truncate(path, path.stat().st_size // 2)
            die()
        return done

    def rename(self: Path, target: Path) -> Path:
        if target.name == name:
            die()
        return replace(self, target)

    if fault == "half-a-file":
        HuggingFaceStorageWriter.write_data = half_a_file  # type: ignore[method-assign]
    elif fault == "before-rename":
        Path.replace = rename  # type: ignore[method-assign]
    else:
        assert fault == "none"


if __name__ == "__main__":
    fault, ranks, step = sys.argv[1:4]
    if os.environ.get("RANK", "0") in ranks.split(","):
        install(fault, int(step))
    sys.exit(main(sys.argv[4:]))
