"""The order of training and of validation: which examples make the global batch of a step.

A step's global batch is a function of (seed, step), the dataset, its size and how it is put together alone. It does not
depend on the layout, and nothing has to be stored to resume: the step is the position.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megaokd.data.batch import Batch, BatchShape
from megaokd.data.mixture import ExampleSet, training_order
from megaokd.data.order import Ids, LengthOrder, Order
from megaokd.data.packing import PACKING_BLOCK, PackedOrder, padding_share
from megaokd.errors import UserError


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """How training examples are put together.

    Args:
        packing: several examples in a row of `sequence_length` positions, each seeing itself only; a global batch is
            counted in rows.
        length_window: steps whose examples are dealt to them by length; 0: as they come.

    Raises:
        UserError: both.
    """

    packing: bool = False
    length_window: int = 0

    def __post_init__(self) -> None:
        if self.packing and self.length_window:
            raise UserError(
                "data.packing and data.length_window exclude one another: packed rows have one length already"
            )


class TrainBatches:
    """Batches without end: epoch after epoch, each a permutation of the examples drawn from (seed, epoch).

    A global batch may reach over the end of an epoch, and over several where the dataset is small. Examples without any
    loss token at this sequence length are left out. The parts of a mixture have epochs of their own.

    Args:
        dataset: the examples.
        shape: how a global batch is cut.
        seed: of the permutations.
        options: how examples are put together.

    Raises:
        UserError: no example has anything to learn.
    """

    def __init__(
        self, dataset: ExampleSet, shape: BatchShape, *, seed: int, options: BatchOptions | None = None
    ) -> None:
        self.dataset = dataset
        self.shape = shape
        self._options = options or BatchOptions()
        self._learnable = self.shape.learnable(dataset)
        self._order: Order = training_order(dataset, self._learnable, seed)
        self._packed: PackedOrder | None = None
        if self._options.packing or self._options.length_window:
            lengths = shape.positions(dataset, np.arange(len(dataset)))
            if self._options.packing:
                self._packed = PackedOrder(self._order, lengths, shape.sequence_length, seed)
            else:
                self._order = LengthOrder(self._order, lengths, shape.global_batch, self._options.length_window, seed)

    @property
    def epoch_size(self) -> int:
        """Examples of an epoch; of a mixture, those of all its parts."""
        return len(self._learnable)

    @property
    def left_out(self) -> int:
        """Examples whose prompt fills the whole sequence, so that nothing of their response is left."""
        return len(self.dataset) - len(self._learnable)

    @property
    def fingerprint(self) -> str:
        """Of the dataset and of how its examples are put together; for a plain order the dataset's own."""
        changed = [name for name, value in vars(self._options).items() if value]
        return " ".join([self.dataset.fingerprint, *(f"{name}={vars(self._options)[name]}" for name in changed)])

    @property
    def notes(self) -> list[str]:
        """What a user should know about these batches, a sentence each."""
        notes = []
        whole, longest = self.dataset.lengths[self._learnable] - 1, self.shape.sequence_length
        if num_cut := int((whole > longest).sum()):
            notes.append(
                f"{self.dataset.folder}: of {len(self.dataset)} examples {num_cut} are cut to data.sequence_length="
                f"{longest}, so that the end of their response is not learned; the longest needs {whole.max()}"
            )
        if self.left_out:
            notes.append(
                f"{self.dataset.folder}: of {len(self.dataset)} examples {self.left_out} are left out: their prompt "
                "fills data.sequence_length"
            )
        if self._packed is not None:
            lengths = self.shape.positions(self.dataset, self._order.part(0, min(PACKING_BLOCK, self.epoch_size)))
            share = padding_share(lengths, self.shape.sequence_length)
            notes.append(
                f"packed rows: {share:.1%} of their positions are padding in the first {len(lengths)} examples"
            )
        return notes

    def visited(self, steps: int) -> Ids:
        """The examples that the first `steps` steps train on, each once, in the order in which they come first."""
        seen = np.zeros(len(self.dataset), dtype=bool)
        found: list[Ids] = []
        left = self.epoch_size
        for step in range(steps):
            examples = self.examples(step)
            _, first = np.unique(examples, return_index=True)
            new = examples[np.sort(first)]
            new = new[~seen[new]]
            seen[new] = True
            found.append(new)
            left -= len(new)
            if left == 0:
                break
        return np.concatenate(found)

    def examples(self, step: int) -> Ids:
        """The example numbers of a step's global batch, the same on every rank; [global_batch] unless packed."""
        if self._packed is not None:
            return np.concatenate(self._rows(step))
        return self._order.part(step * self.shape.global_batch, self.shape.global_batch)

    def batch(self, step: int) -> Batch:
        """This rank's part of a step's global batch."""
        if self._packed is None:
            return self.shape.batch(self.dataset, self.examples(step))
        return self.shape.packed(self.dataset, self._rows(step))

    def _rows(self, step: int) -> list[Ids]:
        assert self._packed is not None
        return self._packed.rows(step * self.shape.global_batch, self.shape.global_batch)


class ValidationBatches:
    """Every example once, in order; iterating again gives the same batches.

    The last global batch is filled up with rows without loss, so that every rank does the same number of micro-batches.

    Args:
        dataset: the examples.
        shape: as in `TrainBatches`.
        limit: most global batches; None: the whole dataset.

    Raises:
        UserError: as in `TrainBatches`.
    """

    def __init__(self, dataset: ExampleSet, shape: BatchShape, *, limit: int | None = None) -> None:
        self.dataset = dataset
        self.shape = shape
        examples = self.shape.learnable(dataset)
        self._examples = examples if limit is None else examples[: limit * shape.global_batch]

    def visited(self) -> Ids:
        """The examples of these batches, in order."""
        return self._examples

    def __len__(self) -> int:
        return -(-len(self._examples) // self.shape.global_batch)

    def __iter__(self) -> Iterator[Batch]:
        size = self.shape.global_batch
        for start in range(0, len(self._examples), size):
            yield self.shape.batch(self.dataset, self._examples[start : start + size])
