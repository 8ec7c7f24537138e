"""Takes two steps in each layout and records, on every rank, what the second sent and what memory holds.

Usage: torchrun ... cost_worker.py CASES.json OUTPUT.json, with CASES = {name: configuration}.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megaokd.benchmark.growth.idle import ObservedRunner
from megaokd.benchmark.growth.kept import kept_bytes, storages_of, total_bytes
from megaokd.config_file import parse_config
from megaokd.data.batch import IGNORE, Batch
from megaokd.mesh import build_mesh, start_distributed
from megaokd.pipeline.schedule import PipelineRunner
from megaokd.run import Run, build_run
from tests.distributed.collectives import RecordedTraffic


def main() -> None:
    cases, output = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    device = start_distributed(timeout_s=120)
    found = {}
    for name, values in cases.items():
        config = parse_config(values)
        run = build_run(config, build_mesh(config.parallel, device))
        step, runner = run.step, run.step.runner
        watch = ObservedRunner(runner) if isinstance(runner, PipelineRunner) else None
        if watch is not None:
            step = replace(step, runner=watch)
        step(0, run.train_batches.batch(0))
        batch = run.train_batches.batch(1)
        with RecordedTraffic(group_names(run)) as traffic:
            step(1, batch)
        own = {
            "place": [run.mesh.pipeline.rank, run.mesh.data.rank, run.mesh.tensor.rank],
            "width": batch.tokens.shape[-1],
            "loss_tokens": loss_tokens(run, batch),
            "traffic": [[*key, calls, traffic.bytes[key]] for key, calls in sorted(traffic.calls.items())],
            **held(run),
            "kept": kept_bytes(run, batch),
            "seconds": None if watch is None else [watch.busy, watch.span],
        }
        everywhere: list[Any] = [None] * run.mesh.world_size
        dist.all_gather_object(everywhere, own)
        found[name] = everywhere
    if dist.get_rank() == 0:
        output.write_text(json.dumps(found))
    dist.destroy_process_group()


def loss_tokens(run: Run, batch: Batch) -> list[list[int]]:
    """Of each micro-batch of this rank, those of each row group."""
    groups = run.models.rows.size if run.models.rows is not None else 1
    kept: list[list[int]] = (batch.labels != IGNORE).unflatten(1, (groups, -1)).sum((2, 3)).tolist()
    return kept


def group_names(run: Run) -> dict[str, str]:
    """torch's name of a group -> ours; an axis that spans the world may be the world's own group.

    Row groups of one rank each are the tensor axis.
    """
    mesh, rows, trunk = run.mesh, run.models.rows, run.models.students[0].tp
    assert dist.group.WORLD is not None
    inner = {}
    if rows is not None and trunk.group is not None:
        inner = {rows.group.group_name: "rows", trunk.group.group_name: "trunk"}
    axes = {"tensor": mesh.tensor.group, "data": mesh.data.group, "pipeline": mesh.pipeline.group}
    named = {group.group_name: name for name, group in axes.items()}
    if mesh.ends is not None:
        named[mesh.ends.group_name] = "ends"
    return {dist.group.WORLD.group_name: "world"} | named | inner


def held(run: Run) -> dict[str, int]:
    """Bytes of frozen and of trained weights, of the gradients before they are reduced, of the optimizer's state."""
    frozen = [p for part in run.models.teachers for p in part.parameters() if not p.requires_grad]
    trained = [item.parameter for item in run.engine.parameters]
    optimizer = run.engine.zero_optimizer
    state = [value for values in optimizer.optimizer.state.values() for value in values.values()]
    state += optimizer.single_partition_of_fp32_groups
    return {
        "frozen": total_bytes(storages_of(*frozen)),
        "trained": total_bytes(storages_of(*trained, *optimizer.bit16_groups_flat)),
        "optimizer": total_bytes(storages_of(*state)),
    }


if __name__ == "__main__":
    main()
