"""The vocabulary split over the tensor-parallel ranks: one range of token ids per rank, for every model of a run.

Teacher and student may be padded differently; the range depends on the larger of the two, so rank r owns the same
token ids of both and their logits line up column by column. Rows that a model does not have are zeros, never trained,
never written to disk and left out of every sum by the loss.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from megaokd.parallel.layout import TensorLayout
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.rows import RowGroups


@dataclass(frozen=True)
class VocabRange:
    """Token ids [start, start + rows) on this rank; ids from `size` on do not exist."""

    start: int
    rows: int
    size: int
    """Tokens that both models and the tokenizer know: what the loss sums over."""

    @classmethod
    def split(cls, size: int, padded: int, tp: TensorParallel) -> "VocabRange":
        """Split `padded` rows (at least `size`) evenly, the last ranks' shares running into padding if need be."""
        assert padded >= size
        rows = -(-padded // tp.size)
        return cls(tp.rank * rows, rows, size)

    def layout(self, model_size: int) -> TensorLayout:
        """The layout of an embedding or head of a model that has `model_size` rows."""
        return TensorLayout(dim=0, start=self.start, length=self.rows, size=model_size)


class VocabParallelEmbedding(nn.Module):
    """Token ids [B, S] -> hidden [B, S or S/tp, D]; one collective each way (`leave`).

    With `rows` the vocabulary is split over more ranks than `tp` has, and a group's rows come out, [B / groups, ...]:
    one more collective each way (`sum_own`), and none in `leave` where `tp` has one rank.
    """

    def __init__(
        self,
        vocab: VocabRange,
        model_size: int,
        hidden_size: int,
        tp: TensorParallel,
        rows: RowGroups | None = None,
    ) -> None:
        super().__init__()
        self.vocab = vocab
        self.layout = vocab.layout(model_size)
        self.tp = tp
        self.rows = rows
        self.weight = nn.Parameter(torch.empty(vocab.rows, hidden_size))

    def layouts(self) -> dict[str, TensorLayout]:
        """Split along the vocabulary."""
        return {"weight": self.layout}

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.tp.size == 1 and self.rows is None:
            return F.embedding(tokens, self.weight)
        local = tokens - self.vocab.start
        foreign = (local < 0) | (local >= self.vocab.rows)
        hidden = F.embedding(local.masked_fill(foreign, 0), self.weight).masked_fill(foreign.unsqueeze(-1), 0.0)
        return self.tp.leave(hidden if self.rows is None else self.rows.sum_own(hidden))


class VocabParallelHead(nn.Module):
    """Rows of hidden states [T, D], the same on every rank -> this rank's logits [T, rows].

    No collective forward, an all-reduce of [T, D] backward. `weight` may be the embedding's (a tied head).
    """

    def __init__(self, weight: nn.Parameter, layout: TensorLayout, tp: TensorParallel) -> None:
        super().__init__()
        self.weight = weight
        self.layout = layout
        self.tp = tp

    def layouts(self) -> dict[str, TensorLayout]:
        """Split along the vocabulary."""
        return {"weight": self.layout}

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(self.tp.enter_replicated(hidden), self.weight)
