"""Counting what is alive on a rank: storages by owner between two steps, and what a forward keeps for backward."""

import gc
import warnings
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from megaokd.benchmark.growth.kept import Storages, storages_of
from megaokd.engine.step import runner_inputs
from megaokd.precision import autocast
from megaokd.run import Run


def live_storages() -> Storages:
    """Every storage that a tensor of this process holds; while they are kept, their addresses are not used again."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    return storages_of(*tensors)


def memory(run: Run, before: Storages) -> dict[str, Any]:
    """Bytes of this run on this rank, between two steps; and of the teacher's forward, what is kept for backward."""
    after = {address: storage for address, storage in live_storages().items() if address not in before}
    frozen = [p for part in run.models.teachers for p in part.parameters() if not p.requires_grad]
    optimizer = run.engine.zero_optimizer
    trained = [item.parameter for item in run.engine.parameters]
    state = [value for values in optimizer.optimizer.state.values() for value in values.values()]
    masters = [*optimizer.single_partition_of_fp32_groups, *optimizer.bit16_groups_flat]
    owned = {"frozen": storages_of(*frozen), "training": storages_of(*trained, *state, *masters)}
    rest = {
        address: storage for address, storage in after.items() if not any(address in part for part in owned.values())
    }
    return {
        "frozen_elements": sum(parameter.numel() for parameter in frozen),
        "frozen_dtypes": sorted({str(parameter.dtype) for parameter in frozen}),
        "frozen_bytes": sum(storage.nbytes() for storage in owned["frozen"].values()),
        "training_bytes": sum(storage.nbytes() for storage in owned["training"].values()),
        "copies_of_frozen": copies(frozen, rest),
        "kept_by_teacher": kept_by_teacher(run),
        "kept_by_validation": kept_by_validation(run),
    }


def copies(frozen: list[torch.nn.Parameter], rest: Storages) -> int:
    """How many of the other storages hold a frozen weight once more, in whichever of the two precisions."""
    known = {content(p.detach().to(dtype).flatten()) for p in frozen for dtype in (torch.float32, torch.bfloat16)}
    return sum(content(torch.empty(0, dtype=torch.uint8).set_(storage)) in known for storage in rest.values())


def content(flat: torch.Tensor) -> bytes:
    return flat.view(torch.uint8).numpy().tobytes()


def kept_by_validation(run: Run) -> int:
    """Bytes that are alive when a batch has gone forward, without the buffers into which a pipeline receives."""
    inputs = runner_inputs(run.train_batches.batch(0), run.mesh.device)
    before = live_storages()
    run.step.runner.forward(*inputs)
    run.step.loss.take_sums()
    after = live_storages()
    stages = [stage for kept in getattr(run.step.runner, "_stages", {}).values() for stage in kept]
    received = [info for stage in stages for infos in stage.args_recv_info.values() for info in infos]
    buffers = storages_of(*[info.buffer for info in received if getattr(info, "buffer", None) is not None])
    return sum(storage.nbytes() for address, storage in after.items() if address not in {**before, **buffers})


def kept_by_teacher(run: Run) -> list[tuple[bool, int]]:
    """For each teacher stage of this rank: whether a module lies in it or below, and the bytes kept for backward."""
    found = []
    for position, stage in enumerate(run.models.stages):
        if stage.teacher is None:
            continue
        index = run.mesh.pipeline.rank + position * run.mesh.pipeline.size
        moves = index >= run.models.slots[-1].grad_from_stage
        inputs = run.train_batches.batch(0).tokens[0]
        if index:
            examples, sequence = inputs.shape
            local = sequence // run.models.tp.size if run.models.tp.sequence_parallel else sequence
            inputs = torch.zeros(examples, local, run.models.slots[-1].hidden_size)
        kept: Storages = {}

        def keep(tensor: torch.Tensor, kept: Storages = kept) -> torch.Tensor:
            kept.update(storages_of(tensor))
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor), autocast(stage.precision, inputs.device):
            stage.teacher(inputs)
        weights = storages_of(*stage.teacher.parameters())
        found.append((moves, sum(storage.nbytes() for address, storage in kept.items() if address not in weights)))
    return found
