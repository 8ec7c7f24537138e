"""Column- and row-parallel linear layers, without their collectives: those belong to the region around them.

column   W [out, in] split by rows:     y_r = W_r x            x is inside the region, y_r is this rank's channels
row      W [out, in] split by columns:  y = leave(W_r x_r)     x_r is this rank's channels, y is outside again
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from megaokd.parallel.layout import TensorLayout, replicated, with_dim
from megaokd.parallel.region import TensorParallel


class OnlineModule(Protocol):
    """What may be added to a layer: [..., in_local] -> [..., out_local], in a row-parallel layer before `leave`."""

    enabled: bool

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


def with_online(y: torch.Tensor, online: OnlineModule | None, x: torch.Tensor) -> torch.Tensor:
    """A layer's output y, and what its module makes of the input x, if there is one and it is switched on."""
    return y if online is None or not online.enabled else y + online(x)


@dataclass(frozen=True)
class HeadShard:
    """How the attention heads of one projection fall on the tensor-parallel ranks.

    With fewer heads than ranks a head is held by `copies` neighbouring ranks (replicated KV heads).
    """

    num_heads: int
    head_dim: int
    tp: TensorParallel

    @property
    def copies(self) -> int:
        """Ranks that hold the same head."""
        return max(1, self.tp.size // self.num_heads)

    @property
    def local_heads(self) -> int:
        """Heads on this rank."""
        return self.num_heads * self.copies // self.tp.size

    def layout(self) -> TensorLayout:
        """The slice of the projection's output channels on this rank."""
        length = self.local_heads * self.head_dim
        return TensorLayout(
            dim=0,
            start=self.tp.rank // self.copies * length,
            length=length,
            size=self.num_heads * self.head_dim,
            copies=self.copies,
            first_copy=self.tp.rank % self.copies == 0,
            partial=self.copies > 1,
        )


def even_layout(size: int, tp: TensorParallel, dim: int) -> TensorLayout:
    """Equal slices of a dimension that the tensor-parallel size divides."""
    assert size % tp.size == 0, f"{size} channels on {tp.size} ranks"
    length = size // tp.size
    return TensorLayout(dim=dim, start=tp.rank * length, length=length, size=size)


class ColumnParallelLinear(nn.Module):
    """y_r = W_r x + b_r, [B, S, in] -> [B, S, out_local]; no collective."""

    def __init__(self, in_features: int, output: TensorLayout, *, bias: bool) -> None:
        super().__init__()
        self.output = output
        self.in_features = in_features
        self.weight = nn.Parameter(torch.empty(output.length, in_features))
        self.bias = nn.Parameter(torch.empty(output.length)) if bias else None
        self.online: OnlineModule | None = None

    def layouts(self) -> dict[str, TensorLayout]:
        """Both weight and bias are split along the output channels."""
        return {"weight": self.output, "bias": self.output}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.linear(x, self.weight, self.bias)
        return with_online(y, self.online, x)


class RowParallelLinear(nn.Module):
    """y = leave(W_r x_r) + b, [B, S, in_local] -> [B, S or S/tp, out]; one collective each way."""

    def __init__(self, input_layout: TensorLayout, out_features: int, tp: TensorParallel, *, bias: bool) -> None:
        super().__init__()
        self.input = with_dim(input_layout, 1)
        self.out_features = out_features
        self.tp = tp
        self.weight = nn.Parameter(torch.empty(out_features, input_layout.length))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None
        self.online: OnlineModule | None = None

    def layouts(self) -> dict[str, TensorLayout]:
        """The weight is split along the input channels; the bias is whole, added once the sum is made."""
        return {
            "weight": self.input,
            "bias": replicated(self.tp.size, self.tp.rank, partial=self.tp.sequence_parallel),
        }

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.tp.leave(with_online(F.linear(x, self.weight), self.online, x))
        return y if self.bias is None else y + self.bias
