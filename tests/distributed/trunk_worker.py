"""Runs each case without a trunk cache, with one that it fills, and with the one that it finds; one JSON file a case.

Usage: torchrun ... trunk_worker.py CASES.json OUTPUT_FOLDER, with CASES = {name: configuration with teacher.cache}.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megaokd.config_file import parse_config
from megaokd.mesh import build_mesh, start_distributed
from megaokd.run import Run, build_run
from megaokd.trunk_cache import prepare
from megaokd.validation import validate


def main() -> None:
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    device = start_distributed(timeout_s=120)
    filled: list[int] = []
    original = prepare.fill

    def counting(plan: Any, parts: Any, shape: Any, say: Any) -> None:
        filled.append(sum(len(source.examples) for _, source in parts))
        original(plan, parts, shape, say)

    prepare.fill = counting
    for name, values in cases.items():
        without = {**values, "teacher": {**values["teacher"], "cache": None}}
        records = []
        for variant in (without, values, values):
            filled.clear()
            config = parse_config(variant)
            run = build_run(config, build_mesh(config.parallel, device))
            history = train(run)
            everywhere: list[Any] = [None] * run.mesh.world_size
            dist.all_gather_object(everywhere, {"filled": list(filled), "met": met(run), "teacher": held(run)})
            records.append({"history": history, "ranks": everywhere})
        if dist.get_rank() == 0:
            (folder / f"{name}.json").write_text(json.dumps(records))
    dist.destroy_process_group()


def train(run: Run) -> list[dict[str, Any]]:
    history: list[dict[str, Any]] = []
    for step in range(run.config.train.steps):
        report = run.step(step, run.train_batches.batch(step))
        history.append({**report.metrics, **report.norms})
    return [*history, validate(run, run.config.train.steps).metrics]


def met(run: Run) -> int:
    """How many examples the run trains and validates on."""
    assert run.validation_batches is not None
    return len(run.train_batches.visited(run.config.train.steps)) + len(run.validation_batches.visited())


def held(run: Run) -> list[str]:
    """The teacher's frozen parameters on this rank."""
    return [
        name
        for part in run.models.teachers
        for name, parameter in part.named_parameters()
        if not parameter.requires_grad
    ]


if __name__ == "__main__":
    main()
