"""Writing one checkpoint to disk, from copies in host memory: what the saving thread does.

All collectives go over `mesh.saving`, so that they cannot meet those of the training step. A kill at any moment leaves
the checkpoints before this one usable: files go into a folder ending in .tmp, state.json with their checksums comes
last, then the folder gets its name.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from megaokd.agreement import together
from megaokd.checkpoint.contents import Contents, FileEntry, write_contents
from megaokd.checkpoint.shard_file import shard_name, write_shard
from megaokd.checkpoint.state import PARTIAL, RunState, checkpoint_path, prune
from megaokd.config import Checkpoint
from megaokd.errors import RunError
from megaokd.files import make_empty, sync_folder
from megaokd.mesh import ParallelMesh


@dataclass(frozen=True)
class CheckpointWriter:
    """Writes checkpoints of a run and removes those that are no longer kept."""

    options: Checkpoint
    mesh: ParallelMesh

    def write(self, tensors: dict[str, torch.Tensor], state: RunState) -> int:
        """Write this rank's tensors and, on rank 0, what makes them a checkpoint; its bytes. Collective.

        Raises:
            RunError: on every rank, if one of them could not do its part.
        """
        folder, group = Path(self.options.folder), self.mesh.saving
        final = checkpoint_path(folder, state.step)
        partial = final.with_suffix(PARTIAL)
        try:
            together(self._on_main(lambda: make_empty(partial)), group)
            files = dict(together(lambda: self._write_own(partial, tensors), group))
            together(self._on_main(lambda: self._commit(partial, final, Contents(state, files))), group)
        except RunError as error:
            if self.mesh.is_main:
                shutil.rmtree(partial, ignore_errors=True)
            raise RunError(
                f"the checkpoint of step {state.step} could not be saved ({error}); the ones before it are untouched: "
                "make room or mend the file system, then continue with train.resume=auto"
            ) from error
        return sum(entry.bytes for entry in files.values())

    def _write_own(self, partial: Path, tensors: dict[str, torch.Tensor]) -> tuple[str, FileEntry]:
        """This rank's file: its name and what it is."""
        name = shard_name(self.mesh.rank)
        write_shard(partial / name, tensors)
        return name, FileEntry.of(partial / name)

    def _on_main(self, work: Callable[[], None]) -> Callable[[], None]:
        return work if self.mesh.is_main else lambda: None

    def _commit(self, partial: Path, final: Path, contents: Contents) -> None:
        write_contents(partial, contents)
        if final.exists():
            final.replace(final.with_suffix(f".old{PARTIAL}"))
        partial.replace(final)
        sync_folder(final.parent)
        prune(
            Path(self.options.folder),
            keep_last=self.options.keep_last,
            keep_every=self.options.keep_every,
            best_step=contents.state.best.get("step"),
        )
