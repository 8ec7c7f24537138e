"""Packing: several short examples in one row of fixed length.

An example is never split over rows. Blocks of examples, in the order of training, are packed by themselves, longest
first, each into the fullest row that has room for it (best fit); so the rows of a step follow from the seed and the
step, after the blocks before it have been packed once.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from megaokd.data.order import Ids, Order

PACKING_BLOCK = 1 << 12
"""Examples that are packed together; the last rows of a block may be half empty."""


class PackedOrder:
    """Rows of examples without end.

    Args:
        order: the examples.
        lengths: positions that each example takes, at most `capacity`.
        capacity: positions of a row.
        seed: of the arrangement of a block's rows.
    """

    def __init__(self, order: Order, lengths: Ids, capacity: int, seed: int) -> None:
        self._order = order
        self._lengths = lengths
        self._capacity = capacity
        self._seed = seed
        self._ends: list[int] = []  # rows up to the end of each block
        self._block: tuple[int, list[Ids]] = (-1, [])  # the last block used

    def rows(self, start: int, count: int) -> list[Ids]:
        """The examples of rows start .. start + count - 1."""
        rows: list[Ids] = []
        while len(rows) < count:
            wanted = start + len(rows)
            while not self._ends or self._ends[-1] <= wanted:
                packed = self._pack(len(self._ends))
                self._ends.append((self._ends[-1] if self._ends else 0) + len(packed))
            block = int(np.searchsorted(self._ends, wanted, side="right"))
            first = wanted - (self._ends[block - 1] if block else 0)
            rows += self._pack(block)[first : first + count - len(rows)]
        return rows

    def _pack(self, block: int) -> list[Ids]:
        if self._block[0] != block:
            examples = self._order.part(block * PACKING_BLOCK, PACKING_BLOCK)
            rows = best_fit(self._lengths[examples].tolist(), self._capacity)
            arrangement = np.random.default_rng([self._seed, block, 3]).permutation(len(rows))
            self._block = (block, [examples[rows[number]] for number in arrangement])
        return self._block[1]


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows of positions in `lengths`, each of at most `capacity` together; best fit, decreasing."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (what is left, row), sorted
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        assert lengths[place] <= capacity
        found = bisect_left(room, (lengths[place], 0))
        if found == len(room):
            room.append((capacity, len(rows)))
            rows.append([])
        left, row = room.pop(found)
        rows[row].append(place)
        insort(room, (left - lengths[place], row))
    return rows


def padding_share(lengths: Ids, capacity: int) -> float:
    """The part of all positions that is padding when these examples are packed."""
    rows = sum(
        len(best_fit(lengths[start : start + PACKING_BLOCK].tolist(), capacity))
        for start in range(0, len(lengths), PACKING_BLOCK)
    )
    return 1.0 - float(lengths.sum()) / (rows * capacity)
