"""Running examples through the trunk and writing what it gives."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megaokd.agreement import together
from megaokd.data.batch import BatchShape
from megaokd.data.mixture import ExampleSet
from megaokd.data.order import Ids
from megaokd.errors import RunError
from megaokd.parallel.region import TensorParallel
from megaokd.pipeline.blueprint import Blueprint
from megaokd.pipeline.schedule import build_runner
from megaokd.pipeline.split import split_model
from megaokd.pipeline.stage import Slot, TrunkStage
from megaokd.pipeline.trunk import trunk_layers, within_trunk
from megaokd.trunk_cache.store import TrunkStore

_SAY_EVERY_S = 30.0


@dataclass(frozen=True)
class Source:
    """Examples of a data set, each once, in the order in which a run meets them first."""

    dataset: ExampleSet
    examples: Ids
    packed: bool = False
    """Training packs them: attention then masks by position, whose last bits are not those of a plain causal one."""


class Recorder:
    """Stands in the place of the pipeline's loss and writes hidden states instead.

    The tensor-parallel ranks, which all hold the same rows, write every n-th each; the data-parallel ranks have rows of
    their own. With sequence parallelism a call costs an all-gather of [b, S/tp, D].
    """

    def __init__(self, store: TrunkStore, tp: TensorParallel) -> None:
        self.store = store
        self.tp = tp

    def __call__(self, hidden: tuple[torch.Tensor, ...], examples: torch.Tensor, *, scale: float) -> torch.Tensor:
        """hidden: one [b, S or S/tp, D]; examples: the number of each row's example [b], -1 for an empty row."""
        whole = self.tp.gather_sequence(hidden[0])
        for row, example in enumerate(examples.tolist()):
            if example >= 0 and row % self.tp.size == self.tp.rank:
                self._write(example, whole[row, : self.store.lengths[example]])
        return whole.new_zeros(())

    def _write(self, example: int, hidden: torch.Tensor) -> None:
        try:
            self.store.write(example, hidden)
        except OSError as error:
            raise RunError(
                f"teacher.cache: {self.store.folder} cannot be written ({error.strerror}); what is there is kept: "
                "start again when that is mended"
            ) from None


def fill(
    plan: Blueprint,
    parts: Sequence[tuple[TrunkStore, Source]],
    shape: BatchShape,
    say: Callable[[str], None],
) -> None:
    """Write the examples of each source into its store, open for writing. Collective.

    Only the trunk is loaded, split as the run's layout splits the teacher, and it is gone afterwards. Examples go
    through it in batches of the run's own shape; a first epoch is filled from the very batches that training will see.

    Raises:
        RunError: a store cannot be written.
    """
    assert plan.teacher is not None
    layers = trunk_layers(plan.config, plan.teacher)
    slices = [within_trunk(part, layers) for part in split_model(plan.teacher, plan.num_stages)]
    stages = [TrunkStage(plan.frozen_teacher(slices[i]), plan.config.train.precision) for i in plan.own_stages]
    slots = (Slot(plan.teacher.hidden_size, grad_from_stage=plan.num_stages, sequence_parts=plan.tp.sequence_parts),)
    device, count, done = plan.mesh.device, sum(len(source.examples) for _, source in parts), 0
    told = time.monotonic()
    for store, source in parts:
        recorder = Recorder(store, plan.tp)
        runner = build_runner(stages, slots, recorder, plan.config.parallel, plan.mesh.pipeline, device)
        for start in range(0, len(source.examples), shape.global_batch):
            chunk = source.examples[start : start + shape.global_batch]
            batch = (
                shape.packed(source.dataset, list(chunk[:, None]))
                if source.packed
                else shape.batch(source.dataset, chunk)
            )
            extras = {} if batch.positions is None else {"positions": batch.positions.to(device)}
            runner.forward(batch.tokens.to(device), _numbers(batch.examples, batch.tokens).to(device), extras)
            done += len(chunk)
            if time.monotonic() - told > _SAY_EVERY_S:
                told = time.monotonic()
                say(f"teacher.cache: {done} of {count} examples written")
        together(store.sync, plan.mesh.saving)


def _numbers(examples: Sequence[Ids], tokens: torch.Tensor) -> torch.Tensor:
    """The example of each row, int64 [M, b]; -1 where it is empty."""
    numbers = np.full(tokens.shape[0] * tokens.shape[1], -1, dtype=np.int64)
    numbers[: len(examples)] = [row[0] for row in examples]
    return torch.from_numpy(numbers).view(tokens.shape[:2])
