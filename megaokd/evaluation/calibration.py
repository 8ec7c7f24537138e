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

    def add(self, log_q: Tensor, labels: Tensor) -> None:
        """log_q: log-probabilities [N, V]; labels [N]."""
        confidence, choice = log_q.max(-1)
        confidence = confidence.exp().double().cpu()
        hits = (choice == labels).double().cpu()
        bins = (
            (confidence.nan_to_num() * NUM_BINS).long().clamp(max=NUM_BINS - 1)
        )  # a NaN spoils the sum, not the index
        self._gaps.index_add_(0, bins, hits - confidence)
        self._tokens += len(labels)

    def error(self) -> float:
        """Between 0 and 1; at least one token was added."""
        return float(self._gaps.abs().sum()) / self._tokens
