"""The order of training: which examples make the global batch of a step, and one data-parallel rank's part of it.

A step's global batch is a function of (seed, step), the dataset and its size alone. It does not depend on the layout,
and nothing has to be stored to resume: the step is the position.

Legend: S positions, T = sequence_length. An example of n tokens takes min(n - 1, T) positions, as its last token is
only ever a label; position t holds token t and the label token t + 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from megaokd.data.dataset import TokenDataset
from megaokd.errors import UserError

IGNORE = -100
"""The label of a position that carries no loss."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One data-parallel rank's part of a global batch.

    Attributes:
        tokens: int64 [micro_batches, micro_batch, S], padded on the right with 0.
        labels: same shape; labels[..., t] is the token that follows tokens[..., t], -100 where there is no loss.
        loss_tokens: labels that carry loss in the *global* batch; the same number on every rank, without communication.
        input_tokens: tokens of the global batch without padding, likewise.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    loss_tokens: int
    input_tokens: int


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

    def positions(self, dataset: TokenDataset, examples: Ids) -> Ids:
        """Positions that each example takes, cut to sequence_length."""
        return np.minimum(dataset.lengths[examples] - 1, self.sequence_length)

    def loss_tokens(self, dataset: TokenDataset, examples: Ids) -> Ids:
        """Labels of each example that carry loss: those from its prompt length on that are not cut off."""
        return np.maximum(self.positions(dataset, examples) + 1 - dataset.prompt_lengths[examples], 0)

    def learnable(self, dataset: TokenDataset) -> Ids:
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

    def batch(self, dataset: TokenDataset, examples: Ids) -> Batch:
        """This rank's contiguous part of a global batch; rows beyond `examples` are empty and carry no loss."""
        positions = self.positions(dataset, examples)
        longest = int(positions.max())
        width = -(-longest // self.bucket) * self.bucket
        rows = self.global_batch // self.dp_size
        tokens = np.zeros((rows, width), dtype=np.int64)
        labels = np.full((rows, width), IGNORE, dtype=np.int64)
        for row, example in enumerate(examples[self.dp_rank * rows : (self.dp_rank + 1) * rows]):
            ids = dataset[example][: self.sequence_length + 1]
            first = dataset.prompt_lengths[example] - 1  # the position whose label is the first of the response
            tokens[row, : len(ids) - 1] = ids[:-1]
            labels[row, first : len(ids) - 1] = ids[first + 1 :]
        shape = (-1, self.micro_batch, width)
        total = int(self.loss_tokens(dataset, examples).sum())
        return Batch(
            torch.from_numpy(tokens).view(shape), torch.from_numpy(labels).view(shape), total, int(positions.sum())
        )


class TrainBatches:
    """Batches without end: epoch after epoch, each a permutation of the examples drawn from (seed, epoch).

    A global batch may reach over the end of an epoch, and over several where the dataset is small. Examples without any
    loss token at this sequence length are left out.

    Args:
        dataset: the examples.
        shape: how a global batch is cut.
        seed: of the permutations.

    Raises:
        UserError: no example has anything to learn.
    """

    def __init__(self, dataset: TokenDataset, shape: BatchShape, *, seed: int) -> None:
        self._dataset = dataset
        self._shape = shape
        self._seed = seed
        self._learnable = self._shape.learnable(dataset)
        self._permutation: tuple[int, Ids] = (-1, self._learnable)  # the last epoch used

    @property
    def epoch_size(self) -> int:
        """Examples of an epoch."""
        return len(self._learnable)

    @property
    def left_out(self) -> int:
        """Examples whose prompt fills the whole sequence, so that nothing of their response is left."""
        return len(self._dataset) - len(self._learnable)

    def examples(self, step: int) -> Ids:
        """The example numbers of a step's global batch, int64 [global_batch], the same on every rank."""
        count = self._shape.global_batch
        epoch, offset = divmod(step * count, self.epoch_size)
        parts: list[Ids] = []
        while count > 0:
            part = self._epoch(epoch)[offset : offset + count]
            parts.append(part)
            count -= len(part)
            epoch, offset = epoch + 1, 0
        return np.concatenate(parts)

    def batch(self, step: int) -> Batch:
        """This rank's part of a step's global batch."""
        return self._shape.batch(self._dataset, self.examples(step))

    def _epoch(self, epoch: int) -> Ids:
        if self._permutation[0] != epoch:
            self._permutation = (epoch, np.random.default_rng([self._seed, epoch]).permutation(self._learnable))
        return self._permutation[1]


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

    def __init__(self, dataset: TokenDataset, shape: BatchShape, *, limit: int | None = None) -> None:
        self._dataset = dataset
        self._shape = shape
        examples = self._shape.learnable(dataset)
        self._examples = examples if limit is None else examples[: limit * shape.global_batch]

    def __len__(self) -> int:
        return -(-len(self._examples) // self._shape.global_batch)

    def __iter__(self) -> Iterator[Batch]:
        size = self._shape.global_batch
        for start in range(0, len(self._examples), size):
            yield self._shape.batch(self._dataset, self._examples[start : start + size])
