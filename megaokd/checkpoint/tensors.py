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
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load

from megaokd.agreement import together
from megaokd.checkpoint.slices import GlobalSlice
from megaokd.engine import optimizer_state
from megaokd.engine.engine import TrainingEngine
from megaokd.engine.parameters import TrainableParameter
from megaokd.errors import UserError
from megaokd.mesh import ParallelMesh
from megaokd.models.decoder import Decoder

GROUP_BYTES = 1 << 30
"""Of moments that are in host memory at once while a checkpoint is loaded."""


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

    Each rank reads by itself, and its optimizer state group by group of parameters: whole moments of all, on each of a
    machine's ranks, would be more than a host has.

    beside: host tensors that every rank holds; filled where the checkpoint has them.

    Raises:
        UserError: on every rank: a tensor is missing or has another shape, as in a checkpoint of another model.
    """
    problem = ""
    try:
        reader = _Reader(str(path))
        for items in bounded_groups(engine.parameters, GROUP_BYTES):
            _load_parameters(items, reader)
        _load_beside(beside, f"rng.{mesh.rank}", reader)
    except (CheckpointException, RuntimeError, ValueError) as error:
        problem = _first_cause(error)
    problems = [text for text in together(lambda: problem, mesh.saving) if text]
    if problems:
        raise UserError(f"{path}: does not fit this model: {problems[0]}")
    optimizer_state.set_step(engine.zero_optimizer, step)


class _Reader(HuggingFaceStorageReader):
    """Reads the headers of a checkpoint's files once, however often tensors are loaded from them."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.metadata = super().read_metadata()

    def read_metadata(self) -> Metadata:
        return self.metadata


def bounded_groups(items: Sequence[TrainableParameter], limit: int) -> Iterator[list[TrainableParameter]]:
    """Parameters in their order, as many together as have both moments in `limit` bytes of fp32, or one."""
    group: list[TrainableParameter] = []
    taken = 0
    for item in items:
        size = len(optimizer_state.MOMENTS) * item.parameter.numel() * torch.float32.itemsize
        if group and taken + size > limit:
            yield group
            group, taken = [], 0
        group.append(item)
        taken += size
    if group:
        yield group


def _load_parameters(items: Sequence[TrainableParameter], reader: _Reader) -> None:
    """Weights in place, moments by way of the host: a device with room for its share may have none for all of them."""
    targets: dict[str, torch.Tensor] = {}
    filled: list[tuple[TrainableParameter, dict[str, torch.Tensor]]] = []
    for item in items:
        weight = item.parameter.detach()
        own = {name: torch.zeros_like(weight, device="cpu") for name in optimizer_state.MOMENTS}
        filled.append((item, own))
        name = f"{item.group}.embed_tokens.weight" if item.tied_copy else item.name
        if item.layout.is_held:
            for key, tensor in ((name, weight), *((f"{name}.{k}", t) for k, t in own.items())):
                targets[key] = GlobalSlice.of(tensor, item.layout)
    _load(targets, reader)
    for item, moments in filled:
        optimizer_state.write_moments(item, moments)


def _load_beside(beside: Mapping[str, torch.Tensor], rng: str, reader: _Reader) -> None:
    known = reader.metadata.state_dict_metadata
    targets = {name: tensor for name, tensor in beside.items() if name in known}
    if rng in known:  # a larger world has ranks that the checkpoint never saw
        targets[rng] = torch.get_rng_state()
    _load(targets, reader)
    if rng in targets:
        torch.set_rng_state(targets[rng])


@torch.no_grad()
def load_weights(path: Path, group: str, decoder: Decoder) -> None:
    """Fill a decoder's weights from those of a group, from whatever layout wrote them. Each rank reads by itself.

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
        _load(targets, _Reader(str(path)))
    except (CheckpointException, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: does not fit this model: {_first_cause(error)}") from error


def _load(targets: dict[str, torch.Tensor], reader: _Reader) -> None:
    with _quiet():
        load(targets, storage_reader=reader, no_dist=True)


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
