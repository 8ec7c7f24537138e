"""What attention keeps of the tokens it has seen, so that generation runs each of them through a model once."""

import torch


class KeyValues:
    """Keys and values of one layer on this rank: 2 x [B, H, T, E] in the dtype of its projections, once it has begun.

    B rows, H local KV heads, T columns, E head dimension; column j holds position j of a row. Columns that a row has
    not reached hold zeros, or what padding left there: a mask hides them until a token of the row takes the place.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self._kept: tuple[torch.Tensor, torch.Tensor] | None = None

    def begin(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Keep those of every row's first S tokens, [B, H, S, E] each."""
        self._kept = self._whole(k), self._whole(v)

    def extend(self, k: torch.Tensor, v: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep those of one token a row, [B, H, 1, E] each, at `places`, int64 [B]; returns all, [B, H, T, E] each."""
        assert self._kept is not None, "the prompts come first"
        rows = torch.arange(len(places), device=places.device)
        for kept, new in zip(self._kept, (k, v), strict=True):
            kept[rows, :, places] = new[:, :, 0]
        return self._kept

    def _whole(self, first: torch.Tensor) -> torch.Tensor:
        whole = first.new_zeros(*first.shape[:2], self.columns, first.shape[3])
        whole[:, :, : first.shape[2]] = first
        return whole
