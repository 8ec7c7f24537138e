"""Reading a batch's trunk back."""

import numpy as np
import numpy.typing as npt
import torch

from megaokd.data.batch import Batch
from megaokd.errors import RunError
from megaokd.parallel.region import TensorParallel
from megaokd.trunk_cache.store import TrunkStore


class TrunkReader:
    """The trunk of any batch of one data set, from a store that holds all its examples.

    store: open for reading.
    needed: whether a stage of this rank begins with the trunk; others get nothing.
    """

    def __init__(self, store: TrunkStore, tp: TensorParallel, *, needed: bool) -> None:
        self.store = store
        self.tp = tp
        self.needed = needed
        self._entries: npt.NDArray[np.uint64] = store.entries()

    def __call__(self, batch: Batch) -> torch.Tensor | None:
        """[M, b, S or S/tp, D] in host memory, in the cache's dtype, zero where a row is padding; no collective.

        What padding holds does not matter: no loss token sees it, and its gradient is zero.

        Raises:
            RunError: an example is no longer what was written.
        """
        if not self.needed:
            return None
        micro_batches, rows, width = batch.tokens.shape
        parts = self.tp.size if self.tp.sequence_parallel else 1
        local = width // parts
        first = local * (self.tp.rank if parts > 1 else 0)
        result = torch.zeros(micro_batches * rows, local, self.store.width, dtype=self.store.dtype)
        for row, together in enumerate(batch.examples):
            start = -first
            for example in together:
                hidden = self._read(int(example))
                end = start + len(hidden)
                low, high = max(start, 0), min(end, local)
                if low < high:
                    result[row, low:high] = hidden[low - start : high - start]
                start = end
        return result.view(micro_batches, rows, local, -1)

    def _read(self, example: int) -> torch.Tensor:
        hidden = self.store.read(example, int(self._entries[example]))
        if hidden is None:
            raise RunError(
                f"teacher.cache: example {example} in {self.store.folder} was damaged while the run was using it; "
                "start again with train.resume=auto: what is damaged is found and made again"
            )
        return hidden
