"""Rotary position embedding (arXiv 2104.09864) in the half-split convention of Hugging Face, and its scaling variants.

A variant changes the frequencies, or the length of the rotated vectors, so that a model can be used beyond the length
it was first trained at. Everything is computed in fp32, in the order of operations of `transformers`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True, kw_only=True)
class LinearScaling:
    """Positions divided by a factor."""

    amplitude: ClassVar[float] = 1.0
    """What cos and sin are multiplied by."""
    factor: float

    def frequencies(self, rotary: "Rotary", sequence: int) -> torch.Tensor:
        """Angle per position of each pair of channels, [dim / 2] fp32."""
        return rotary.unscaled() / self.factor


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1: low frequencies divided by a factor, high ones kept, those between interpolated."""

    amplitude: ClassVar[float] = 1.0
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int

    def frequencies(self, rotary: "Rotary", sequence: int) -> torch.Tensor:
        """As `LinearScaling.frequencies`."""
        plain = rotary.unscaled()
        turns = self.original_positions * plain / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0.0, 1.0)
        return plain * (kept + (1 - kept) / self.factor)


@dataclass(frozen=True, kw_only=True)
class YarnScaling:
    """YaRN (arXiv 2309.00071): interpolation by channel, and longer vectors for a sharper softmax."""

    factor: float
    original_positions: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    amplitude: float

    def frequencies(self, rotary: "Rotary", sequence: int) -> torch.Tensor:
        """As `LinearScaling.frequencies`."""
        low, high = self._channel(rotary, self.beta_fast), self._channel(rotary, self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rotary.dim - 1)
        width = high - low if high != low else 0.001
        kept = 1 - ((torch.arange(rotary.dim // 2, dtype=torch.float32, device="cpu") - low) / width).clamp(0.0, 1.0)
        plain = rotary.unscaled()
        return plain * kept + plain / self.factor * (1 - kept)

    def _channel(self, rotary: "Rotary", turns: float) -> float:
        """The pair of channels that turns this often over the original length."""
        wavelength = self.original_positions / (turns * 2 * math.pi)
        return rotary.dim * math.log(wavelength) / (2 * math.log(rotary.theta))


@dataclass(frozen=True, kw_only=True)
class LongRopeScaling:
    """LongRoPE (arXiv 2402.13753): a factor for each pair of channels; another set beyond the original length."""

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_positions: int
    amplitude: float

    def frequencies(self, rotary: "Rotary", sequence: int) -> torch.Tensor:
        """As `LinearScaling.frequencies`; `sequence`, the width of the batch, decides for all of its positions."""
        chosen = self.long_factor if sequence > self.original_positions else self.short_factor
        return rotary.unscaled(torch.tensor(chosen, dtype=torch.float32, device="cpu"))


Scaling = LinearScaling | Llama3Scaling | YarnScaling | LongRopeScaling


@dataclass(frozen=True, kw_only=True)
class Rotary:
    """Which channels of a head turn with the position, and how fast."""

    dim: int
    """The first `dim` channels of a head, an even number; the others stay as they are."""
    theta: float = 10000.0
    scaling: Scaling | None = None

    def unscaled(self, factors: torch.Tensor | None = None) -> torch.Tensor:
        """1 / (factors theta^(2i/dim)), [dim / 2] fp32 on the CPU."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float32, device="cpu") / self.dim
        powers = self.theta**exponents
        return 1.0 / (powers if factors is None else factors * powers)

    def table(self, sequence: int, device: torch.device) -> "RotaryTable":
        """cos and sin of positions 0 .. sequence - 1."""
        scaling = self.scaling
        frequencies = self.unscaled() if scaling is None else scaling.frequencies(self, sequence)
        positions = torch.arange(sequence, dtype=torch.float32, device=device)
        angles = torch.outer(positions, frequencies.to(device))
        angles = torch.cat((angles, angles), dim=-1)
        amplitude = 1.0 if scaling is None else scaling.amplitude
        return RotaryTable(angles.cos() * amplitude, angles.sin() * amplitude)


@dataclass(frozen=True)
class RotaryTable:
    """cos and sin of every position and rotated channel, [S, dim] or [B, 1, S, dim] fp32."""

    cos: torch.Tensor
    sin: torch.Tensor

    def at(self, places: torch.Tensor) -> "RotaryTable":
        """The rows of a table of positions 0 .. S - 1 at `places` [B, S]."""
        return RotaryTable(self.cos[places].unsqueeze(1), self.sin[places].unsqueeze(1))


def rotate(x: torch.Tensor, table: RotaryTable) -> torch.Tensor:
    """x: [B, heads, S, E] -> the same with its first `dim` channels rotated; keeps x's dtype."""
    dim = table.cos.shape[-1]
    turned, kept = x[..., :dim], x[..., dim:]
    left, right = turned.chunk(2, dim=-1)
    turned = turned * table.cos.to(x.dtype) + torch.cat((-right, left), dim=-1) * table.sin.to(x.dtype)
    return turned if dim == x.shape[-1] else torch.cat((turned, kept), dim=-1)
