"""What a decoder knows about positions: learned vectors at the bottom, or rotations and masks in its attention."""

from dataclasses import dataclass

import torch
from torch import nn

from megaokd.models.architecture import AttentionKind
from megaokd.models.rotary import RotaryTable
from megaokd.parallel.region import TensorParallel


@dataclass(frozen=True)
class Positions:
    """What the attention of one kind of layer needs for a batch of one width."""

    rotary: RotaryTable | None
    mask: torch.Tensor | None
    """[S, S], True where a query (row) sees a key; None: every earlier position and its own."""

    @classmethod
    def build(cls, kind: AttentionKind, sequence: int, device: torch.device) -> "Positions":
        """For positions 0 .. sequence - 1. A query sees `window` keys, its own among them."""
        table = kind.rotary.table(sequence, device) if kind.rotary is not None else None
        mask = None
        if kind.window is not None and kind.window < sequence:
            causal = torch.ones(sequence, sequence, dtype=torch.bool, device=device).tril()
            mask = causal.triu(1 - kind.window)
        return cls(table, mask)


class PositionEmbedding(nn.Module):
    """Learned vectors added to the embeddings: x [B, S or S/tp, D] -> the same. Whole on every rank, no collective."""

    def __init__(self, positions: int, hidden_size: int, offset: int, tp: TensorParallel) -> None:
        super().__init__()
        self.offset = offset
        """Rows in front of position 0 (OPT has two)."""
        self.tp = tp
        self.weight = nn.Parameter(torch.empty(offset + positions, hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        length = x.shape[1]
        start = self.offset + (length * self.tp.rank if self.tp.sequence_parallel else 0)
        return x + self.weight[start : start + length]
