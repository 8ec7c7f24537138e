"""What evaluation needs of a tokenized data set, and how its examples are grouped into batches."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from megaokd.data.batch import IGNORE


class Examples(Protocol):
    """Tokenized examples: `[bos] prompt response [eos]`, the first `prompt_lengths[i]` ids carrying no loss."""

    @property
    def prompt_lengths(self) -> Any:
        """Number of leading ids of each example (bos included) that are its prompt."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Example(NamedTuple):
    """One example, cut to the longest sequence that is evaluated."""

    ids: list[int]
    prompt_length: int


class LossBatch(NamedTuple):
    """Right-padded examples; B examples, S positions. `labels[b, s]` is what position s must predict."""

    input_ids: Tensor  # [B, S]; behind an example any token, which none of its own sees
    labels: Tensor  # [B, S], IGNORE where there is no loss


def read_examples(data: Examples, max_length: int) -> list[Example]:
    """The examples that have at least one loss token within `max_length` ids; longer ones are cut at the end."""
    examples = []
    for index in range(len(data)):
        # The first id of a sequence is never predicted: without a bos, an empty prompt loses that one token.
        prompt_length = max(1, int(data.prompt_lengths[index]))
        ids = [int(token) for token in data[index][:max_length]]
        if len(ids) > prompt_length:
            examples.append(Example(ids, prompt_length))
    return examples


def loss_batches(examples: Sequence[Example], max_tokens: int, pad_id: int) -> Iterator[LossBatch]:
    """Batches of at most `max_tokens` padded tokens (or one longer example), of examples of similar length."""
    batch: list[Example] = []
    for example in sorted(examples, key=lambda example: len(example.ids)):
        if batch and (len(batch) + 1) * len(example.ids) > max_tokens:
            yield _collate(batch, pad_id)
            batch = []
        batch.append(example)
    if batch:
        yield _collate(batch, pad_id)


def _collate(batch: Sequence[Example], pad_id: int) -> LossBatch:
    length = max(len(example.ids) for example in batch)
    input_ids = torch.full((len(batch), length), pad_id)
    labels = torch.full_like(input_ids, IGNORE)
    for row, (ids, prompt_length) in enumerate(batch):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, prompt_length - 1 : len(ids) - 1] = torch.tensor(ids[prompt_length:])
    return LossBatch(input_ids, labels)
