"""Saving a run and finding the newest good checkpoint to continue from."""

import os
import shutil
from pathlib import Path

import torch.distributed as dist

from megaokd.checkpoint.state import RunState, checkpoint_path, list_checkpoints, prune, read_state, write_state
from megaokd.checkpoint.tensors import load_tensors, save_tensors
from megaokd.config import Checkpoint
from megaokd.engine.engine import TrainingEngine
from megaokd.errors import UserError
from megaokd.mesh import ParallelMesh

# What a checkpoint and the run that continues it must have in common: with any other value the step would stand for
# another position in the data, or the weights for another model.
_IDENTITY = ("seed", "data_fingerprint", "global_batch", "sequence_length", "models", "teacher_hash")


class Checkpointer:
    """Writes checkpoints atomically: into a folder called *.tmp, synchronised to disk, then renamed."""

    def __init__(self, options: Checkpoint, engine: TrainingEngine, mesh: ParallelMesh) -> None:
        self.options = options
        self.folder = Path(options.folder)
        self.engine = engine
        self.mesh = mesh

    def save(self, state: RunState) -> Path:
        """Save a complete checkpoint; a kill at any moment leaves the ones before it usable. Collective."""
        final = checkpoint_path(self.folder, state.step)
        partial = final.with_suffix(".tmp")
        if self.mesh.is_main:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        save_tensors(partial, self.engine, self.mesh)
        dist.barrier()
        if self.mesh.is_main:
            write_state(partial, state)
            _sync(partial)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
            _sync_folder(final.parent)
            prune(self.folder, keep_last=self.options.keep_last, best_step=state.best.get("step"))
        dist.barrier()
        return final

    def resume(self, expected: RunState) -> RunState | None:
        """Load the newest complete checkpoint; None where there is none. Collective.

        Raises:
            UserError: it belongs to another run (data, batch, teacher, seed or model differ) or is damaged.
        """
        path = self.newest()
        if path is None:
            return None
        state = read_state(path)
        for name in _IDENTITY:
            saved, now = getattr(state, name), getattr(expected, name)
            if saved != now:
                raise UserError(
                    f"{path}: {name.replace('_', ' ')} was {saved!r} when it was saved and is {now!r} now; "
                    "continue with the same, or start in another checkpoint.folder"
                )
        load_tensors(path, self.engine, self.mesh, state.step)
        return state

    def newest(self) -> Path | None:
        """The newest complete checkpoint as rank 0 sees it: on a shared file system others may lag. Collective."""
        found = list_checkpoints(self.folder)[-1:] if self.mesh.is_main else []
        shared: list[Path | None] = [found[0] if found else None]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
