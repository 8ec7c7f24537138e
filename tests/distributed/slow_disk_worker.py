"""Exports a model to a disk that takes longer than any collective of a run may.

Usage: torchrun ... slow_disk_worker.py MODEL_FOLDER OUTPUT_FOLDER
"""

import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import _set_pg_timeout

from megaokd.agreement import from_main
from megaokd.config import Parallel
from megaokd.mesh import build_mesh, start_distributed
from megaokd.models import huggingface_weights
from tests.distributed.family_worker import build

TIMEOUT_S, DISK_S = 4, 7


def main() -> None:
    model, output = map(Path, sys.argv[1:])
    device = start_distributed(timeout_s=120)
    mesh = build_mesh(Parallel(), device, TIMEOUT_S)
    decoder, _, _ = build(model, Parallel(), mesh)
    huggingface_weights.load_decoder(decoder, model)
    dist.barrier()
    _set_pg_timeout(timedelta(seconds=TIMEOUT_S), dist.group.WORLD)
    save_file = huggingface_weights.save_file

    def slow_save_file(*arguments: Any, **options: Any) -> None:
        time.sleep(DISK_S)
        save_file(*arguments, **options)

    huggingface_weights.save_file = slow_save_file
    huggingface_weights.export_weights([decoder], output, mesh)
    assert from_main(lambda: time.sleep(DISK_S) or "read", mesh.saving) == "read"
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
