"""Making sure, before the first step, that a cache holds every example that a run will ask for."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from megaokd.agreement import from_main, together
from megaokd.data.batch import BatchShape
from megaokd.data.order import Ids
from megaokd.errors import RunError, UserError
from megaokd.models.folder_hash import teacher_hash
from megaokd.pipeline.blueprint import Blueprint
from megaokd.pipeline.split import split_model
from megaokd.pipeline.trunk import stage_above, trunk_layers
from megaokd.trunk_cache.fill import Source, fill
from megaokd.trunk_cache.key import folder_name, trunk_key
from megaokd.trunk_cache.lock import folder_lock
from megaokd.trunk_cache.reader import TrunkReader
from megaokd.trunk_cache.store import TrunkStore

Say = Callable[[str], None]


@dataclass
class _Part:
    """A source, its store, and which of its examples the store lacks."""

    source: Source
    store: TrunkStore
    missing: Ids

    def bytes_of(self, examples: Ids) -> int:
        return int(self.store.lengths[examples].sum()) * self.store.row_bytes


def prepare_trunks(plan: Blueprint, sources: Sequence[Source], shape: BatchShape, say: Say) -> list[TrunkReader]:
    """A reader for each source; what its store lacks, or holds damaged, is made first. Collective.

    Where nothing is missing the trunk's weights are not read. One read of all that the run needs, shared among the
    ranks, compares it with its checksums.

    say: tells the user; called on every rank with the same texts.

    Raises:
        UserError: the folder cannot be used, or the disk cannot hold what is missing.
        RunError: writing failed.
    """
    assert plan.config.teacher.cache is not None
    root = Path(plan.config.teacher.cache.path)
    digest = _teacher_digest(plan)
    with folder_lock(root, say):
        parts = [_look(plan, source, shape, root, digest, say) for source in sources]
        if any(len(part.missing) for part in parts):
            _check_room(root, parts, say)
            fill(plan, [(part.store, replace(part.source, examples=part.missing)) for part in parts], shape, say)
    for part in parts:
        part.store.open()
    needed = _begins_here(plan)
    return [TrunkReader(part.store, plan.tp, needed=needed) for part in parts]


def _teacher_digest(plan: Blueprint) -> str:
    path, folder = plan.config.teacher.path, Path(plan.config.checkpoint.folder)
    assert path is not None
    digest: str = _on_main(lambda: teacher_hash(path, folder), plan)
    return digest


def _look(plan: Blueprint, source: Source, shape: BatchShape, root: Path, digest: str, say: Say) -> _Part:
    """Open a source's store, made anew where it is not whole, and find out what it lacks."""
    config, teacher = plan.config, plan.teacher
    assert teacher is not None
    assert config.teacher.cache is not None
    layers = trunk_layers(config, teacher)
    key = trunk_key(
        config,
        plan.mesh,
        teacher=digest,
        data=source.dataset.fingerprint,
        trunk_layers=layers,
        hidden_size=teacher.hidden_size,
        packed=source.packed,
    )
    lengths = shape.positions(source.dataset, np.arange(len(source.dataset)))
    store = TrunkStore(root / folder_name(key), lengths, teacher.hidden_size, config.teacher.cache.dtype)

    def make_whole() -> None:
        if not store.is_whole(key):
            store.create(key)

    def open_files() -> None:
        store.open(write=True)

    try:
        _on_main(make_whole, plan)
        together(open_files, plan.mesh.saving)
    except RunError as error:
        raise UserError(f"teacher.cache.path={root} cannot be used: {error}") from None
    # As rank 0 sees it: on a shared file system others may lag.
    entries: npt.NDArray[np.uint64] = _on_main(store.entries, plan)
    present = source.examples[entries[source.examples] > 0]
    damaged = _damaged(plan, store, present, entries)
    if len(damaged):
        _on_main(lambda: store.forget(damaged), plan)
        say(f"teacher.cache: {len(damaged)} examples in {store.folder} are not what was written and are made again")
    lacking = (entries[source.examples] == 0) | np.isin(source.examples, damaged)
    return _Part(source, store, source.examples[lacking])


def _damaged(plan: Blueprint, store: TrunkStore, examples: Ids, entries: npt.NDArray[np.uint64]) -> Ids:
    """Those that are not what was written; the ranks share the reading."""
    own = examples[dist.get_rank() :: dist.get_world_size()]

    def look() -> list[int]:
        return [int(example) for example in own if store.read(int(example), int(entries[example])) is None]

    found = together(look, plan.mesh.saving)
    return np.array([example for part in found for example in part], dtype=np.int64)


def _check_room(root: Path, parts: Sequence[_Part], say: Say) -> None:
    """Say how large the cache will be; refuse one that the disk cannot hold."""
    total = sum(part.bytes_of(part.source.examples) for part in parts)
    missing = sum(part.bytes_of(part.missing) for part in parts)
    free = from_main(lambda: shutil.disk_usage(root).free)
    examples = sum(len(part.source.examples) for part in parts)
    say(
        f"teacher.cache: {_size(total)} in {root} for {examples} examples, {_size(missing)} of it still to be written; "
        f"{_size(free)} are free"
    )
    if missing > free:
        raise UserError(
            f"teacher.cache.path={root}: {_size(missing)} are to be written and {_size(free)} are free; choose another "
            "path, teacher.cache.dtype=bfloat16 (half the size) or a shorter data.sequence_length, or no teacher.cache"
        )


def _begins_here(plan: Blueprint) -> bool:
    """Whether a stage of this rank begins with the trunk."""
    assert plan.teacher is not None
    slices = split_model(plan.teacher, plan.num_stages)
    return stage_above(slices, trunk_layers(plan.config, plan.teacher)) in plan.own_stages


def _on_main(work: Callable[[], Any], plan: Blueprint) -> Any:
    """Rank 0's result on every rank, or a `RunError` on every rank."""
    return together(work if plan.mesh.is_main else lambda: None, plan.mesh.saving)[0]


def _size(count: int) -> str:
    """Bytes, readably."""
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
