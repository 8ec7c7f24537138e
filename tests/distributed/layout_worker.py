"""Runs OKD in one layout after another inside one group of processes; rank 0 writes losses, norms and weights.

Usage: torchrun ... layout_worker.py CASES.json OUTPUT_FOLDER, with CASES = {name: configuration}.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megaokd.checkpoint.frozen import frozen_weights_hash
from megaokd.config_file import parse_config
from megaokd.distill.module_norms import module_norms
from megaokd.generation.generate import generate
from megaokd.generation.options import GenerationOptions
from megaokd.mesh import build_mesh, start_distributed
from megaokd.models.huggingface_weights import gather_whole
from megaokd.run import Run, build_run
from tests.distributed.live_tensors import live_storages, memory


def main() -> None:
    cases, folder = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    device = start_distributed(timeout_s=120)
    for name, values in cases.items():
        config = parse_config(values)
        before = live_storages()
        run = build_run(config, build_mesh(config.parallel, device))
        frozen = frozen_weights_hash(run.models.teachers)
        history = train(run)
        weights = gather(run)
        everywhere: list[Any] = [None] * run.mesh.world_size
        dist.all_gather_object(everywhere, {**facts(run, frozen), **memory(run, before)})
        if dist.get_rank() == 0:
            (folder / f"{name}.json").write_text(json.dumps(history))
            (folder / f"{name}.facts.json").write_text(json.dumps(everywhere))
            save_file(weights, folder / f"{name}.safetensors")
    dist.destroy_process_group()


def train(run: Run) -> list[dict[str, Any]]:
    history = []
    for step in range(run.config.train.steps):
        report = run.step(step, run.train_batches.batch(step))
        history.append({**report.metrics, "norms": report.norms, "tokens": report.tokens})
    return history


def facts(run: Run, frozen_before: str) -> dict[str, Any]:
    """What this rank holds of the frozen teacher beside its weights, and of the optimizer."""
    frozen = [p for part in run.models.teachers for p in part.parameters() if not p.requires_grad]
    state = run.engine.zero_optimizer.optimizer.state
    return {
        "frozen_changed": frozen_weights_hash(run.models.teachers) != frozen_before,
        "frozen_gradients": sum(p.grad is not None for p in frozen),
        "teacher_in_train_mode": any(module.training for part in run.models.teachers for module in part.modules()),
        "trainable": sum(item.parameter.numel() for item in run.engine.parameters),
        "moments": sum(values["exp_avg"].numel() for values in state.values()),
        "data_parallel": run.mesh.data.size,
        "module_norms": module_norms(run.models.teachers, run.mesh.tensor, run.mesh.pipeline),
        "generated": generated(run) if run.mesh.pipeline.size == 1 else None,
    }


def generated(run: Run) -> list[list[int]]:
    """What the trained student says."""
    options = GenerationOptions(max_new_tokens=8, temperature=0.0)
    return generate(run.models.students[0], [[5, 17, 3], [40, 2]], options, eos_id=0)


def gather(run: Run) -> dict[str, torch.Tensor]:
    """Every trainable tensor, whole, on rank 0."""
    mesh = run.mesh
    local = {}
    for item in run.engine.parameters:
        whole = gather_whole(item.parameter.detach(), item.layout, mesh).clone()
        if not item.tied_copy:
            local[item.name] = whole
    everywhere: list[Any] = [None] * mesh.world_size
    dist.all_gather_object(everywhere, local)
    return {name: tensor.contiguous() for part in everywhere for name, tensor in part.items()}


if __name__ == "__main__":
    main()
