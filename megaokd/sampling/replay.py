"""What the student has written before, kept to be trained on again."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from megaokd.data.mixture import ExampleSet
from megaokd.mesh import Axis
from megaokd.sampling.rows import Row

_DRAW = 0x7265
"""Sets the random numbers of these draws apart from others of the same seed."""


class Replay:
    """The last `capacity` rows of all data-parallel ranks, in the order of the global batches: the same on every rank.

    table: int64 [capacity, 2 + most tokens of a response] on the host: example, tokens of the response, the response.
    It is all that there is to save, with `stored`.
    """

    def __init__(self, capacity: int, max_new_tokens: int) -> None:
        self.table = torch.zeros(capacity, 2 + max_new_tokens, dtype=torch.int64)
        self.stored = 0
        """Rows that were ever put in; row n stands in place n modulo capacity."""

    @property
    def full(self) -> bool:
        """Whether every place is taken."""
        return self.stored >= len(self.table)

    def add(self, rows: Sequence[Row], data: Axis, device: torch.device) -> None:
        """Put in the rows of every data-parallel rank. One all-gather of [rows, 2 + tokens] int64 over `data`."""
        own = self.table.new_zeros(len(rows), self.table.shape[1])
        for place, row in enumerate(rows):
            own[place, :2] = torch.tensor((row.example, len(row.response)))
            own[place, 2 : 2 + len(row.response)] = torch.tensor(row.response, dtype=torch.int64)
        ranks = own.to(device).new_empty(data.size, *own.shape)
        dist.all_gather_single(ranks.flatten(0, 1), own.to(device), group=data.group)
        new = ranks.flatten(0, 1).cpu()
        self.table[(torch.arange(len(new)) + self.stored) % len(self.table)] = new
        self.stored += len(new)

    def draw(self, seed: int, step: int, count: int, own: slice, dataset: ExampleSet) -> list[Row]:
        """Of `count` rows drawn for this step, each once, those at the places `own`."""
        held = min(self.stored, len(self.table))
        places = np.random.default_rng((_DRAW, seed, step)).permutation(held)[:count][own]
        rows = []
        for example, length, *tokens in self.table[torch.from_numpy(places)].tolist():
            rows.append(Row(example, dataset[example][: dataset.prompt_lengths[example]], tokens[:length]))
        return rows
