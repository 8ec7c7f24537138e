"""Expected calibration error: does a model that is sure to 80% hit in 80% of the cases?"""

import torch
from torch import Tensor

NUM_BINS = 15


class Calibration:
    """ECE (arXiv 1706.04599) of the likeliest token: sum over bins of |hits - confidence| / tokens.

    Tokens are put into `NUM_BINS` bins of equal width by the probability of their likeliest token.
    """

    def __init__(self) -> None:
        self._gaps = torch.zeros(NUM_BINS, dtype=torch.float64)
        self._tokens = 0

    def add(self, confidence: Tensor, hits: Tensor) -> None:
        """Of N tokens, fp64 [N] each: the probability of the likeliest, and 1 where that is the label, else 0."""
        confidence, hits = confidence.cpu(), hits.cpu()
        bins = (
            (confidence.nan_to_num() * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        )  # a NaN spoils the sum, not the index
        self._gaps.index_add_(0, bins, hits - confidence)
        self._tokens += len(hits)

    def join(self, other: "Calibration") -> None:
        """Adds the tokens of another part of the data."""
        self._gaps += other._gaps
        self._tokens += other._tokens

    def error(self) -> float:
        """Between 0 and 1; at least one token was added."""
        return float(self._gaps.abs().sum()) / self._tokens
