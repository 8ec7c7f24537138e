"""The position-wise part of a decoder layer, gated or plain."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

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
        product: torch.Tensor = Gated.apply(self.gate_proj(x), self.up_proj(x), self.activation)
        return self.down_proj(product)


class Gated(torch.autograd.Function):
    """act(gate) * up, all of one shape and dtype; the values and gradients that autograd has, bit for bit.

    Saved: gate and up. Autograd by itself keeps act(gate) too, as large as they are; backward makes it again.
    """

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor, activation: Activation) -> torch.Tensor:
        ctx.activation = activation
        ctx.save_for_backward(gate, up if ctx.needs_input_grad[0] else None)
        return activate(gate, activation) * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        gate, up = ctx.saved_tensors
        wants_gate, wants_up, _ = ctx.needs_input_grad
        grad_gate = _activation_gradient(grad * up, gate, ctx.activation) if wants_gate else None
        return grad_gate, grad * activate(gate, ctx.activation) if wants_up else None, None


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


def _activation_gradient(grad: torch.Tensor, x: torch.Tensor, name: Activation) -> torch.Tensor:
    """What autograd makes of the gradient of `activate(x, name)`."""
    aten = torch.ops.aten
    result: torch.Tensor
    match name:
        case "silu":
            result = aten.silu_backward(grad, x)
        case "relu":
            result = aten.threshold_backward(grad, x, 0)
        case "gelu":
            result = aten.gelu_backward(grad, x)
        case "gelu_tanh":
            result = aten.gelu_backward(grad, x, approximate="tanh")
    return result
