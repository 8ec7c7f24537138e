"""Several runs, one after the other, in one group of processes.

Usage: torchrun ... checkpoint_worker.py RUNS.json, with RUNS = [{"config": configuration, "start_from": checkpoint or
null, "disk_seconds": what each save takes longer}].
"""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megaokd.checkpoint import saving, tensors
from megaokd.config_file import parse_config
from megaokd.mesh import build_mesh, start_distributed
from megaokd.signals import StopRequest
from megaokd.trainer import Trainer

write_shard = saving.write_shard


def main() -> None:
    device = start_distributed(timeout_s=240)
    tensors.GROUP_BYTES = 1 << 13  # the larger of the tiny models' parameters are a group each
    for run in json.loads(Path(sys.argv[1]).read_text()):
        config = parse_config(run["config"])
        folder = Path(config.checkpoint.folder)
        if run["start_from"] is not None and dist.get_rank() == 0:
            source = Path(run["start_from"])
            shutil.copytree(source, folder / "checkpoints" / source.name)
        dist.barrier()
        slow_down(run["disk_seconds"])
        trainer = Trainer(config, build_mesh(config.parallel, device, config.train.timeout_s))
        trainer.fit(StopRequest())
    dist.destroy_process_group()


def slow_down(seconds: float) -> None:
    """A disk on which each save takes longer."""

    def slow_write_shard(*arguments: Any) -> None:
        time.sleep(seconds)
        write_shard(*arguments)

    saving.write_shard = slow_write_shard


if __name__ == "__main__":
    main()
