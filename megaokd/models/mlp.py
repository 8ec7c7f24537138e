"""The position-wise part of a decoder layer, gated or plain."""

import torch
import torch.nn.functional as F
from torch import nn

from megaokd.models.architecture import Activation, DecoderArchitecture
from megaokd.parallel.linear import ColumnParallelLinear, RowParallelLinear, even_layout
from megaokd.parallel.region import TensorParallel


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), or down(act(up(x))) without a gate: [B, S or S/tp, D] -> the same."""

    def __init__(self, arch: DecoderArchitecture, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.activation: Activation = arch.activation
        channels = even_layout(arch.intermediate_size, tp, dim=0)
        bias = arch.mlp_bias
        self.gate_proj = ColumnParallelLinear(arch.hidden_size, channels, bias=bias) if arch.gated_mlp else None
        self.up_proj = ColumnParallelLinear(arch.hidden_size, channels, bias=bias)
        self.down_proj = RowParallelLinear(channels, arch.hidden_size, tp, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tp.enter(x)
        if self.gate_proj is None:
            return self.down_proj(activate(self.up_proj(x), self.activation))
        return self.down_proj(activate(self.gate_proj(x), self.activation) * self.up_proj(x))


def activate(x: torch.Tensor, name: Activation) -> torch.Tensor:
    """The activation of that name, element by element."""
    match name:
        case "silu":
            return F.silu(x)
        case "relu":
            return F.relu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
