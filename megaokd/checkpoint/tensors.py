"""The tensors of a checkpoint, by global names: which of them a rank writes, and reading them into any layout.

student.NAME, online.NAME                      weights, fp32
student.NAME.exp_avg, student.NAME.exp_avg_sq  AdamW's moments, likewise for online
on_policy.replay                               int64, the buffer of an adaptive train.on_policy (sampling/replay.py)
rng.RANK                                       the CPU random state of a rank, uint8; training draws nothing from it
"""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from megaokd.checkpoint.slices import GlobalSlice
from megaokd.engine import optimizer_state
from megaokd.engine.engine import TrainingEngine
from megaokd.engine.parameters import TrainableParameter
from megaokd.errors import UserError
from megaokd.mesh import ParallelMesh
from megaokd.models.decoder import Decoder


def tensors_to_save(
    engine: TrainingEngine, mesh: ParallelMesh, beside: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of all that this rank writes: every global slice once, by the first rank that holds it.

    beside: what every rank holds, on the host.

    The data-parallel ranks, which hold the same, take turns. Collective over the data-parallel group (two sums a
    parameter); the tensors share memory with the parameters, or live only until the next one is asked for.
    """
    yield f"rng.{mesh.rank}", torch.get_rng_state()
    if mesh.is_main:
        yield from beside.items()
    for index, item in enumerate(engine.parameters):
        moments = optimizer_state.read_moments(item)  # collective: also on ranks that do not write
        mine = mesh.data.rank == index % mesh.data.size
        if mine and item.layout.first_copy and not item.tied_copy and item.layout.is_held:
            yield item.name, GlobalSlice.of(item.parameter.detach(), item.layout)
            for name, moment in moments.items():
                yield f"{item.name}.{name}", GlobalSlice.of(moment, item.layout)


@torch.no_grad()
def load_tensors(
    path: Path, engine: TrainingEngine, mesh: ParallelMesh, step: int, beside: Mapping[str, torch.Tensor]
) -> None:
    """Fill weights and optimizer state, from whatever layout wrote them. Collective over the world.

    beside: host tensors that every rank holds; filled where the checkpoint has them.

    Raises:
        UserError: a tensor is missing or has another shape: a checkpoint of another model.
    """
    targets: dict[str, torch.Tensor] = {}
    filled: list[tuple[TrainableParameter, dict[str, torch.Tensor]]] = []
    for item in engine.parameters:
        weight = item.parameter.detach()
        # On the host: a device that has room for its share of the optimizer state may have none for all of it.
        own = {name: torch.zeros_like(weight, device="cpu") for name in optimizer_state.MOMENTS}
        filled.append((item, own))
        name = f"{item.group}.embed_tokens.weight" if item.tied_copy else item.name
        if item.layout.is_held:
            for key, tensor in ((name, weight), *((f"{name}.{k}", t) for k, t in own.items())):
                targets[key] = GlobalSlice.of(tensor, item.layout)
    reader, rng = HuggingFaceStorageReader(str(path)), f"rng.{mesh.rank}"
    try:
        known = reader.read_metadata().state_dict_metadata
        if rng in known:  # a larger world has ranks that the checkpoint never saw
            targets[rng] = torch.get_rng_state()
        targets.update({name: tensor for name, tensor in beside.items() if name in known})
        with _quiet():
            load(targets, storage_reader=reader, process_group=mesh.saving)
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: does not fit this model: {_first_cause(error)}") from error
    for item, moments in filled:
        optimizer_state.write_moments(item, moments)
    optimizer_state.set_step(engine.zero_optimizer, step)
    if rng in targets:
        torch.set_rng_state(targets[rng])


@torch.no_grad()
def load_weights(path: Path, group: str, decoder: Decoder) -> None:
    """Fill a decoder's weights from those of a group, from whatever layout wrote them. Collective over the world.

    Raises:
        UserError: as in `load_tensors`.
    """
    layouts = decoder.named_layouts()
    targets: dict[str, torch.Tensor] = {
        f"{group}.{name}": GlobalSlice.of(parameter.detach(), layout)
        for name, parameter, layout in layouts
        if layout.is_held
    }
    try:
        with _quiet():
            load(targets, storage_reader=HuggingFaceStorageReader(str(path)))
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: does not fit this model: {_first_cause(error)}") from error


def _first_cause(error: BaseException) -> str:
    """The sentence that says what was wrong, out of the library's per-rank collection of errors."""
    failures: Sequence[object] = list(error.failures.values()) if isinstance(error, CheckpointException) else []
    first = failures[0] if failures else error
    cause = first[0] if isinstance(first, tuple) else first
    return " ".join(str(cause).split())[:300]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's notices."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
