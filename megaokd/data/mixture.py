"""Several datasets as one: their examples one after another, drawn from by weight."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megaokd.config import Data
from megaokd.data.dataset import TokenDataset
from megaokd.data.megatron import MegatronDataset, is_megatron
from megaokd.data.order import EpochOrder, Ids, MixtureOrder, Order
from megaokd.errors import UserError


class ExampleSet(Protocol):
    """What a token dataset of any kind offers."""

    lengths: npt.NDArray[np.int64]
    """Tokens of each example."""
    prompt_lengths: npt.NDArray[np.int64]
    """Leading tokens of each example whose prediction carries no loss, at least 1."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]: ...

    @property
    def folder(self) -> Path:
        """Where it is, for messages."""
        ...

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id of the tokenizer."""
        ...

    @property
    def vocabulary_hash(self) -> str:
        """See `megaokd.data.tokenizer.vocabulary_hash`."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with the content."""
        ...

    @property
    def tokenizer_path(self) -> Path:
        """A folder that `transformers.AutoTokenizer` loads."""
        ...


class Mixture:
    """The examples of `parts`, numbered one after another.

    Attributes:
        starts: number of the first example of each part, and the number of all.

    Raises:
        UserError: two parts were made with different tokenizers.
    """

    def __init__(self, parts: Sequence[ExampleSet], weights: Sequence[float]) -> None:
        self.parts = list(parts)
        self.weights = list(weights)
        self.lengths = np.concatenate([part.lengths for part in parts])
        self.prompt_lengths = np.concatenate([part.prompt_lengths for part in parts])
        self.starts = np.cumsum([0, *map(len, parts)])
        for part in parts[1:]:
            if part.vocabulary_hash != parts[0].vocabulary_hash:
                raise UserError(
                    f"{part.folder} and {parts[0].folder} were made with different tokenizers; preprocess one again"
                )

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        """The token ids of one example, int64 [length]."""
        part = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[part][int(index - self.starts[part])]

    @property
    def folder(self) -> Path:
        """Of the first part."""
        return self.parts[0].folder

    @property
    def vocab_size(self) -> int:
        """Of the tokenizer that all parts have in common."""
        return self.parts[0].vocab_size

    @property
    def vocabulary_hash(self) -> str:
        """See `TokenDataset`."""
        return self.parts[0].vocabulary_hash

    @property
    def fingerprint(self) -> str:
        """Changes with any part and any weight."""
        text = " ".join(f"{part.fingerprint}*{weight!r}" for part, weight in zip(self.parts, self.weights, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def tokenizer_path(self) -> Path:
        """See `TokenDataset`."""
        return self.parts[0].tokenizer_path


def open_dataset(path: str, data: Data) -> ExampleSet:
    """The dataset at `path`: a folder that `megaokd preprocess` wrote, or the prefix of Megatron's .bin and .idx.

    Raises:
        UserError: it is neither, or damaged; a Megatron dataset without `data.tokenizer`.
    """
    prefix = path.removesuffix(".bin").removesuffix(".idx")
    if prefix != path and is_megatron(prefix):
        raise UserError(f"{path}: a Megatron dataset is two files; name them without their endings, {prefix}")
    if not is_megatron(path):
        return TokenDataset(path)
    if data.tokenizer is None:
        raise UserError(f"{path}: a Megatron dataset does not carry its tokenizer; set data.tokenizer to its folder")
    return MegatronDataset(path, data.tokenizer, block_length=data.sequence_length)


def open_training_data(data: Data) -> ExampleSet:
    """What `data.train` names: one dataset, or a mixture.

    Raises:
        UserError: as `open_dataset` and `Mixture`.
    """
    if isinstance(data.train, str):
        return open_dataset(data.train, data)
    parts = [open_dataset(part.path, data) for part in data.train]
    return Mixture(parts, [part.weight for part in data.train])


def training_order(dataset: ExampleSet, examples: Ids, seed: int) -> Order:
    """The order of training over `examples`, sorted numbers of the dataset.

    Raises:
        UserError: a part of a mixture has none of them.
    """
    if not isinstance(dataset, Mixture):
        return EpochOrder(examples, seed)
    orders = []
    for number, (start, end) in enumerate(pairwise(dataset.starts)):
        first, last = np.searchsorted(examples, (start, end))
        if first == last:
            raise UserError(f"{dataset.parts[number].folder}: no example has anything to learn at this sequence length")
        orders.append(EpochOrder(examples[first:last], seed, number))
    return MixtureOrder(orders, dataset.weights, seed)
