"""Which example comes when: endless streams of example numbers, each a function of a seed and a place in the stream.

Nothing is stored to continue: any part of a stream can be asked for, and costs about its own length.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

MIXING_BLOCK = 1 << 16
"""Draws in which a mixture keeps its weights exactly (to 1 in so many)."""


class Order(Protocol):
    """A stream of example numbers without end."""

    def part(self, start: int, count: int) -> Ids:
        """The numbers at places start .. start + count - 1, int64 [count]."""
        ...


class EpochOrder:
    """Epoch after epoch, each a permutation of the examples drawn from (seed, epoch)."""

    def __init__(self, examples: Ids, *seed: int) -> None:
        self._examples = examples
        self._seed = seed
        self._permutation: tuple[int, Ids] = (-1, examples)  # the last epoch used

    def part(self, start: int, count: int) -> Ids:
        """See `Order`; may reach over several epochs."""
        parts = [self._epoch(epoch)[first:end] for epoch, first, end in _pieces(start, count, len(self._examples))]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def _epoch(self, epoch: int) -> Ids:
        if self._permutation[0] != epoch:
            self._permutation = (epoch, np.random.default_rng([*self._seed, epoch]).permutation(self._examples))
        return self._permutation[1]


class MixtureOrder:
    """Draws from several orders by weight.

    The stream is cut into blocks of `MIXING_BLOCK` draws. Each block takes from every order its exact share, in an
    arrangement drawn from (seed, block); so what an order has given before a block is known without looking back.
    """

    def __init__(self, orders: Sequence[Order], weights: Sequence[float], seed: int) -> None:
        self._orders = orders
        self._shares = exact_shares(weights, MIXING_BLOCK)
        self._seed = seed
        self._arrangement: tuple[int, Ids] = (-1, self._shares)  # the last block used

    def part(self, start: int, count: int) -> Ids:
        """See `Order`."""
        parts = [self._drawn(block, first, end) for block, first, end in _pieces(start, count, MIXING_BLOCK)]
        return np.concatenate([np.zeros(0, dtype=np.int64), *parts])

    def _drawn(self, block: int, first: int, end: int) -> Ids:
        arrangement = self._block(block)
        drawn = arrangement[first:end]
        result = np.empty(len(drawn), dtype=np.int64)
        for number, order in enumerate(self._orders):
            mine = drawn == number
            before = block * int(self._shares[number]) + int((arrangement[:first] == number).sum())
            result[mine] = order.part(before, int(mine.sum()))
        return result

    def _block(self, block: int) -> Ids:
        if self._arrangement[0] != block:
            numbers = np.repeat(np.arange(len(self._shares)), self._shares)
            self._arrangement = (block, np.random.default_rng([self._seed, block, 1]).permutation(numbers))
        return self._arrangement[1]


class LengthOrder:
    """Batches of examples of similar length.

    The examples of `window` batches are sorted by length and cut into batches, which come in an arrangement drawn from
    (seed, window). What is trained on in a window does not change, only what is trained on together.
    """

    def __init__(self, order: Order, lengths: Ids, batch: int, window: int, seed: int) -> None:
        self._order = order
        self._lengths = lengths
        self._batch = batch
        self._window = window
        self._seed = seed
        self._sorted: tuple[int, Ids] = (-1, lengths)  # the last window used

    def part(self, start: int, count: int) -> Ids:
        """One whole batch: `start` is a multiple of the batch's size, which is `count`."""
        assert count == self._batch
        assert start % count == 0
        number, place = divmod(start // count, self._window)
        if self._sorted[0] != number:
            size = self._window * self._batch
            examples = self._order.part(number * size, size)
            batches = examples[np.argsort(self._lengths[examples], kind="stable")].reshape(self._window, self._batch)
            self._sorted = (number, np.random.default_rng([self._seed, number, 2]).permutation(batches))
        return self._sorted[1][place]


def exact_shares(weights: Sequence[float], total: int) -> Ids:
    """Whole numbers in proportion to the weights, at least 1 each, that sum to `total`."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    shares = np.maximum(np.floor(exact), 1).astype(np.int64)
    largest_remainders = np.argsort(shares - exact, kind="stable")
    shares[largest_remainders[: max(total - int(shares.sum()), 0)]] += 1
    shares[np.argmax(shares)] += total - shares.sum()  # the shares that were raised to 1
    return shares


def _pieces(start: int, count: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Of each block of `size` places that start .. start + count - 1 reach into: (block, first place in it, end)."""
    while count > 0:
        block, first = divmod(start, size)
        end = min(first + count, size)
        yield block, first, end
        start, count = start + end - first, count - (end - first)
