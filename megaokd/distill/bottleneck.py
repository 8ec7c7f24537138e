"""A bottleneck on the residual stream: h + (alpha / rank) U silu(D h / rms(h)), U = 0 at the start.

An adapter in the manner of Houlsby et al. (arXiv 1902.00751) without biases. Its input is scaled to unit size, since
residual streams differ by factors of hundreds between models and between the layers of one.

It stands outside the tensor-parallel regions, where activations are whole on every rank (or split along the
sequence): both matrices are replicated, each rank computes the same, and there is no collective. Their gradients are
complete; with sequence parallelism each rank has those of its own tokens, summed once a step like those of the norms.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Bottleneck(nn.Module):
    """What is added to h: [..., D] -> [..., D]; fp32 parameters, no collective."""

    def __init__(self, size: int, *, rank: int, alpha: float, eps: float, device: torch.device) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.eps = eps
        self.enabled = True
        self.down = nn.Parameter(torch.empty(rank, size, device=device, dtype=torch.float32))
        self.up = nn.Parameter(torch.empty(size, rank, device=device, dtype=torch.float32))

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        wide = h.to(torch.promote_types(h.dtype, torch.float32))
        unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return F.linear(F.silu(F.linear(unit, self.down)), self.up) * self.scale
