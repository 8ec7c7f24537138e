"""Saving a run beside its training, and continuing from the newest good checkpoint."""

import contextlib
import copy
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from megaokd.agreement import from_main, together
from megaokd.callbacks.base import CheckpointRecord
from megaokd.checkpoint.choice import choose_checkpoint
from megaokd.checkpoint.contents import read_contents, write_contents
from megaokd.checkpoint.host_copy import HostCopy
from megaokd.checkpoint.saving import CheckpointWriter
from megaokd.checkpoint.state import RunState, checkpoint_path, list_checkpoints
from megaokd.checkpoint.tensors import load_tensors, tensors_to_save
from megaokd.config import Checkpoint
from megaokd.engine.engine import TrainingEngine
from megaokd.errors import RunError, UserError
from megaokd.mesh import ParallelMesh


class Checkpointer:
    """At most one save is under way, in a thread; a second one, or the end of the run, waits for it.

    A save that failed has failed on every rank. `failed` becomes true on each at a time of its own: ranks agree on it
    as they do on SIGTERM, and the next `save` or `wait` raises on all of them.
    """

    def __init__(
        self,
        options: Checkpoint,
        engine: TrainingEngine,
        mesh: ParallelMesh,
        beside: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.options = options
        self.beside = beside or {}
        """Host tensors that every rank holds, saved and filled with the rest."""
        self.folder = Path(options.folder)
        self.engine = engine
        self.mesh = mesh
        self._host = HostCopy()
        self._writer = CheckpointWriter(options, mesh)
        self._thread = ThreadPoolExecutor(1, "checkpoint", _use_device, (mesh.device,))
        self._pending: Future[CheckpointRecord] | None = None

    @property
    def failed(self) -> bool:
        """Whether this rank knows that the save under way has failed."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def save(self, state: RunState) -> CheckpointRecord | None:
        """Begin to save; training may go on at once. Collective. Returns the save before, if it was still under way.

        Raises:
            RunError: that save failed; with `checkpoint.asynchronous=false`, this one.
        """
        started = time.perf_counter()
        before = self.wait()  # its buffers are needed, and one save at a time is enough
        tensors = self._host.fill(tensors_to_save(self.engine, self.mesh, self.beside))
        stall = time.perf_counter() - started
        snapshot = copy.deepcopy(state)

        def write() -> CheckpointRecord:
            begun = time.perf_counter()
            size = self._writer.write(tensors, snapshot)
            seconds = time.perf_counter() - begun
            return CheckpointRecord(
                snapshot.step, size, stall + (0.0 if self.options.asynchronous else seconds), seconds
            )

        self._pending = self._thread.submit(write)
        return before if self.options.asynchronous else self.wait()

    def wait(self) -> CheckpointRecord | None:
        """Wait for the save under way, if there is one.

        Raises:
            RunError: it failed; on every rank.
        """
        pending, self._pending = self._pending, None
        return pending.result() if pending is not None else None

    def settle(self) -> None:
        """`wait` for a run that ends for another reason: a save that failed is not told."""
        with contextlib.suppress(RunError):
            self.wait()

    def finished(self) -> CheckpointRecord | None:
        """The save that has ended well since the last call, without waiting."""
        done = self._pending is not None and self._pending.done() and not self.failed
        return self.wait() if done else None

    def update(self, state: RunState) -> None:
        """Write this state into the checkpoint of its step, whose tensors stay as they are. Collective."""
        path = checkpoint_path(self.folder, state.step)

        def rewrite() -> None:
            if self.mesh.is_main:
                write_contents(path, replace(read_contents(path), state=state))

        together(rewrite, self.mesh.saving)

    def resume(self, expected: RunState) -> tuple[RunState | None, list[str]]:
        """Load the newest whole checkpoint; (its state, what to tell about damaged ones). Collective.

        Raises:
            UserError: it belongs to another run (data, batch, teacher, seed or model differ), or none is whole.
        """
        choice = choose_checkpoint(self.folder, self.mesh.saving)
        if choice is None:
            return None, []
        differences = choice.contents.state.differences(expected)
        if differences:
            raise UserError(
                f"{choice.path}: {'; '.join(differences)}. Continue with the same, or choose another checkpoint.folder"
            )
        load_tensors(choice.path, self.engine, self.mesh, choice.contents.state.step, self.beside)
        return choice.contents.state, choice.skipped


def _use_device(device: torch.device) -> None:
    """In a thread of its own, whose current device is 0 otherwise: all ranks would make themselves known to that GPU,
    at some hundred MB each.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def refuse_checkpoints(folder: Path) -> None:
    """Refuse a folder that holds checkpoints, as rank 0 sees it. Collective."""
    if from_main(lambda: list_checkpoints(folder)):
        raise UserError(
            f"{folder} already holds checkpoints; continue with train.resume=auto or choose another checkpoint.folder"
        )
