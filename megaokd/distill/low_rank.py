"""LoRA (arXiv 2106.09685) on a linear layer: y = W x + (alpha / rank) B (A x), B = 0 at the start.

Under tensor parallelism a module adds no collective to its layer:

    column-parallel base   A replicated, B split by rows; A sees the x that already entered the region
    row-parallel base      A split by columns, B replicated; B A_r x_r is added before the base layer's own sum

The replicated one of the two gets a partial gradient on every rank (`TensorLayout.partial`), summed once a step with
every other such parameter.
"""

import torch
import torch.nn.functional as F
from torch import nn

from megaokd.parallel.layout import TensorLayout, replicated, with_dim
from megaokd.parallel.linear import ColumnParallelLinear, RowParallelLinear
from megaokd.parallel.region import TensorParallel


class LowRankAdapter(nn.Module):
    """(alpha / rank) B (A x): [..., in_local] -> [..., out_local]; fp32 parameters, no collective."""

    def __init__(
        self, base: ColumnParallelLinear | RowParallelLinear, tp: TensorParallel, *, rank: int, alpha: float
    ) -> None:
        super().__init__()
        out_local, in_local = base.weight.shape
        device = base.weight.device
        self.scale = alpha / rank
        self.enabled = True
        self.lora_A = nn.Parameter(torch.empty(rank, in_local, device=device, dtype=torch.float32))
        self.lora_B = nn.Parameter(torch.empty(out_local, rank, device=device, dtype=torch.float32))
        whole = replicated(tp.size, tp.rank, partial=True)
        if isinstance(base, ColumnParallelLinear):
            self._layouts = {"lora_A": whole, "lora_B": base.output}
        else:
            self._layouts = {"lora_A": with_dim(base.input, 1), "lora_B": whole}

    def layouts(self) -> dict[str, TensorLayout]:
        """One of the two is split like its base layer, the other is whole and its gradient partial."""
        return self._layouts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Scaled where it is narrow: `rank` channels a token, not as many as the layer has outputs.
        return F.linear(F.linear(x, self.lora_A) * self.scale, self.lora_B)
