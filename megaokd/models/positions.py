"""What a decoder knows about positions: learned vectors at the bottom, or rotations and masks in its attention."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from megaokd.models.architecture import AttentionKind
from megaokd.models.key_values import KeyValues
from megaokd.models.rotary import RotaryTable
from megaokd.parallel.region import TensorParallel


@dataclass(frozen=True)
class Positions:
    """What the attention of one kind of layer needs for a batch of one width."""

    rotary: RotaryTable | None
    mask: torch.Tensor | None
    """[S, S] or [B, 1, S, S], True where a query (row) sees a key; None: every earlier position and its own."""
    kept: KeyValues | None = None
    """In generation: where the layer keeps keys and values."""
    places: torch.Tensor | None = None
    """int64 [B]: the batch is one token a row, at these positions, and sees what is kept; `mask` is [B, 1, 1, T']."""

    @classmethod
    def build(cls, kind: AttentionKind, sequence: int, device: torch.device) -> "Positions":
        """For positions 0 .. sequence - 1. A query sees `window` keys, its own among them."""
        table = kind.rotary.table(sequence, device) if kind.rotary is not None else None
        return cls(table, window_mask(kind.window, sequence, device))

    def within(self, places: torch.Tensor) -> "Positions":
        """The same for rows that several texts share, with `places` [B, S] as `Decoder` takes them.

        Costs a mask of B x S x S bytes.
        """
        text = (places == 0).cumsum(-1)
        same = (text[:, :, None] == text[:, None, :]).unsqueeze(1)
        mask = same.tril() if self.mask is None else same & self.mask
        return Positions(None if self.rotary is None else self.rotary.at(places), mask)


def window_mask(window: int | None, sequence: int, device: torch.device) -> torch.Tensor | None:
    """The mask of `Positions` for positions 0 .. sequence - 1 where a query sees `window` keys, its own among them."""
    if window is None or window >= sequence:
        return None
    return torch.ones(sequence, sequence, dtype=torch.bool, device=device).tril().triu(1 - window)


class PositionEmbedding(nn.Module):
    """Learned vectors added to the embeddings: x [B, S or S/tp, D] -> the same. Whole on every rank, no collective."""

    def __init__(self, positions: int, hidden_size: int, offset: int, tp: TensorParallel) -> None:
        super().__init__()
        self.offset = offset
        """Rows in front of position 0 (OPT has two)."""
        self.tp = tp
        self.weight = nn.Parameter(torch.empty(offset + positions, hidden_size))

    def forward(self, x: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        length = x.shape[1]
        start = length * self.tp.rank if self.tp.sequence_parallel else 0
        if places is not None:
            return x + F.embedding(places[:, start : start + length] + self.offset, self.weight)
        return x + self.weight[self.offset + start : self.offset + start + length]
