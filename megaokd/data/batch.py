"""A global batch: which positions its examples take, and one data-parallel rank's part of it as tensors.

Legend: S positions, T = sequence_length. An example of n tokens takes min(n - 1, T) positions, as its last token is
only ever a label; position t holds token t and the label token t + 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megaokd.data.mixture import ExampleSet
from megaokd.data.order import Ids
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
