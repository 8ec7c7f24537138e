"""The order of training: which examples make the global batch of a step, and one data-parallel rank's part of it.

A step's global batch is a function of (seed, step), the dataset, its size and how it is put together alone. It does not
depend on the layout, and nothing has to be stored to resume: the step is the position.

Legend: S positions, T = sequence_length. An example of n tokens takes min(n - 1, T) positions, as its last token is
only ever a label; position t holds token t and the label token t + 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megaokd.data.mixture import ExampleSet, training_order
from megaokd.data.order import Ids, LengthOrder, Order
from megaokd.data.packing import PACKING_BLOCK, PackedOrder, padding_share
from megaokd.errors import UserError

IGNORE = -100
"""The label of a position that carries no loss."""


@dataclass(frozen=True)
class Batch:
    """One data-parallel rank's part of a global batch.

    Attributes:
        tokens: int64 [micro_batches, micro_batch, S], padded on the right with 0.
        labels: same shape; labels[..., t] is the token that follows tokens[..., t], -100 where there is no loss.
        loss_tokens: labels that carry loss in the *global* batch; the same number on every rank, without communication.
        input_tokens: tokens of the global batch without padding, likewise.
        positions: int64, shape of `tokens`: each token's position in its own example, where examples share rows; every
            0 begins another, and so does the padding. None: one example a row.
        examples: the number of the example in each of this rank's rows, of those in a row one after another where they
            share it; fewer than rows where the last are empty.
        generated: whether the student has written the responses.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_tokens: int
    input_tokens: int
    positions: torch.Tensor | None = None
    examples: Sequence[Ids] = ()
    generated: bool = False


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


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """How a global batch is cut: positions, data-parallel ranks, micro-batches.

    Args:
        sequence_length: most positions of an example; longer ones are cut at the end.
        bucket: S is the longest example of the global batch, rounded up to a multiple of this.
        global_batch: examples of a step, over all data-parallel ranks.
        micro_batch: examples of one forward pass on one rank.
        dp_rank: this data-parallel rank.
        dp_size: number of data-parallel ranks.

    Raises:
        UserError: a global batch that does not divide into micro-batches of every rank.
    """

    sequence_length: int
    bucket: int
    global_batch: int
    micro_batch: int
    dp_rank: int = 0
    dp_size: int = 1

    def __post_init__(self) -> None:
        assert 0 <= self.dp_rank < self.dp_size
        together = self.micro_batch * self.dp_size
        if self.global_batch % together == 0:
            return
        below = self.global_batch // together * together
        fitting = [below, below + together] if below else [together]
        choices = f"a global batch of {' or '.join(map(str, fitting))}"
        per_rank, rest = divmod(self.global_batch, self.dp_size)
        if rest == 0:
            divisors = [str(size) for size in range(1, per_rank + 1) if per_rank % size == 0]
            choices += f", or a micro-batch of {', '.join(divisors)}"
        raise UserError(
            f"train.global_batch = {self.global_batch} is not a multiple of train.micro_batch x data-parallel ranks = "
            f"{self.micro_batch} x {self.dp_size} = {together}; what fits: {choices}"
        )

    def positions(self, dataset: ExampleSet, examples: Ids) -> Ids:
        """Positions that each example takes, cut to sequence_length."""
        return np.minimum(dataset.lengths[examples] - 1, self.sequence_length)

    def loss_tokens(self, dataset: ExampleSet, examples: Ids) -> Ids:
        """Labels of each example that carry loss: those from its prompt length on that are not cut off."""
        return np.maximum(self.positions(dataset, examples) + 1 - dataset.prompt_lengths[examples], 0)

    def learnable(self, dataset: ExampleSet) -> Ids:
        """The examples that carry any loss, in order; a prompt that fills the whole sequence leaves none.

        Raises:
            UserError: there is none.
        """
        examples = np.flatnonzero(self.loss_tokens(dataset, np.arange(len(dataset))))
        if len(examples) == 0:
            raise UserError(
                f"{dataset.folder}: every prompt fills data.sequence_length = {self.sequence_length} and nothing "
                f"is left to learn; the shortest prompt has {dataset.prompt_lengths.min()}"
            )
        return examples

    def batch(self, dataset: ExampleSet, examples: Ids) -> Batch:
        """This rank's contiguous part of a global batch; rows beyond `examples` are empty and carry no loss."""
        return self._fill(dataset, examples[:, None], examples, int(self.positions(dataset, examples).max()), None)

    def packed(self, dataset: ExampleSet, rows: Sequence[Ids]) -> Batch:
        """This rank's contiguous part of a global batch of rows that several examples share."""
        positions = np.zeros((self.global_batch // self.dp_size, self.width(self.sequence_length)), dtype=np.int64)
        return self._fill(dataset, rows, np.concatenate(rows), self.sequence_length, positions)

    def width(self, longest: int) -> int:
        """S of a batch whose longest row takes so many positions."""
        return -(-longest // self.bucket) * self.bucket

    def _fill(
        self, dataset: ExampleSet, rows: Sequence[Ids] | Ids, examples: Ids, longest: int, positions: Ids | None
    ) -> Batch:
        width = self.width(longest)
        count = self.global_batch // self.dp_size
        tokens = np.zeros((count, width), dtype=np.int64)
        labels = np.full((count, width), IGNORE, dtype=np.int64)
        own = rows[self.dp_rank * count : (self.dp_rank + 1) * count]
        for row, together in enumerate(own):
            start = 0
            for example in together:
                ids = dataset[example][: self.sequence_length + 1]
                end = start + len(ids) - 1
                first = dataset.prompt_lengths[example] - 1  # the position whose label is the first of the response
                tokens[row, start:end] = ids[:-1]
                labels[row, start + first : end] = ids[first + 1 :]
                if positions is not None:
                    positions[row, start:end] = np.arange(end - start)
                start = end
            if positions is not None:
                positions[row, start:] = np.arange(width - start)
        shape = (-1, self.micro_batch, width)
        return Batch(
            torch.from_numpy(tokens).view(shape),
            torch.from_numpy(labels).view(shape),
            int(self.loss_tokens(dataset, examples).sum()),
            int(self.positions(dataset, examples).sum()),
            None if positions is None else torch.from_numpy(positions).view(shape),
            list(own),
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
        if self.left_out:
            notes.append(f"{self.left_out} examples are left out: their prompt fills data.sequence_length")
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
