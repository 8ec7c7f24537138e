"""Norms over the last dimension, computed in fp32 at least."""

import torch
import torch.nn.functional as F
from torch import nn

from megaokd.models.architecture import DecoderArchitecture
from megaokd.parallel.layout import TensorLayout, replicated
from megaokd.parallel.region import TensorParallel


class RMSNorm(nn.Module):
    """x / rms(x) * (offset + weight)."""

    def __init__(self, size: int, eps: float, offset: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.offset = offset
        """Gemma stores a weight's difference from one; 0 elsewhere."""
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight = self.weight.to(wide.dtype) + self.offset if self.offset else self.weight
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * weight


class HeadNorm(RMSNorm):
    """An RMSNorm over the channels of one head, inside a tensor-parallel region: shared by heads of all ranks."""

    def __init__(self, arch: DecoderArchitecture, tp: TensorParallel) -> None:
        super().__init__(arch.head_dim, arch.norm_eps, arch.norm_offset)
        self.tp = tp

    def layouts(self) -> dict[str, TensorLayout]:
        """Whole on every rank; its gradient is that of this rank's heads."""
        return {"weight": replicated(self.tp.size, self.tp.rank, partial=True)}


class LayerNorm(nn.Module):
    """(x - mean(x)) / std(x) * weight + bias."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = nn.Parameter(torch.empty(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.layer_norm(wide, weight.shape, weight, bias, self.eps)


def build_norm(arch: DecoderArchitecture) -> RMSNorm | LayerNorm:
    """The norm of the residual stream."""
    if arch.norm == "layer":
        return LayerNorm(arch.hidden_size, arch.norm_eps)
    return RMSNorm(arch.hidden_size, arch.norm_eps, arch.norm_offset)
