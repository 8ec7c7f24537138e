"""Rotary position embedding (arXiv 2104.09864) in the half-split convention of Hugging Face's Llama."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RotaryTable:
    """cos and sin of every position and frequency, [S, E] fp32."""

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def build(cls, sequence: int, head_dim: int, theta: float, device: torch.device) -> "RotaryTable":
        """Positions 0 .. sequence - 1; frequencies theta^(-2i/E) in fp32."""
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        angles = torch.outer(torch.arange(sequence, dtype=torch.float32, device=device), theta**-exponents)
        angles = torch.cat((angles, angles), dim=-1)
        return cls(angles.cos(), angles.sin())


def rotate(x: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """x: [B, heads, S, E] -> the same, rotated; keeps x's dtype."""
    left, right = x.chunk(2, dim=-1)
    return x * table.cos.to(x.dtype) + torch.cat((-right, left), dim=-1) * table.sin.to(x.dtype)
