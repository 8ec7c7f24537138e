"""The `rope_parameters` of a config.json to our rotary positions."""

import math
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from megaokd.errors import UserError
from megaokd.models.rotary import LinearScaling, Llama3Scaling, LongRopeScaling, Rotary, Scaling, YarnScaling

_COMMON = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
# rope_type -> its keys. Dynamic scaling begins beyond max_position_embeddings, and longer batches are refused.
_KEYS = {
    "default": set(),
    "dynamic": {"factor", "original_max_position_embeddings"},
    "linear": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
        "mscale_all_dim", "truncate",
    },
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
}  # fmt: skip


def read_rotary(rope: dict[str, Any], read: PretrainedConfig, head_dim: int, path: Path) -> Rotary:
    """rope: as `transformers` normalises it, older spellings and defaults filled in.

    Raises:
        UserError: a kind of scaling, or one of its fields, that we do not build.
    """
    kind = rope.get("rope_type", "default")
    if kind not in _KEYS:
        raise UserError(f"{path}: rope_type={kind!r} is not supported; these are: {', '.join(_KEYS)}")
    unknown = [key for key, value in rope.items() if key not in _COMMON | _KEYS[kind] and value is not None]
    if unknown:
        raise UserError(f"{path}: {unknown[0]!r} is not supported in rope_parameters of rope_type={kind!r}")
    rotary = Rotary(
        dim=int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        theta=float(rope["rope_theta"]),
        scaling=_scaling(kind, rope, read.max_position_embeddings),
    )
    factors = (getattr(rotary.scaling, name, None) for name in ("short_factor", "long_factor"))
    if any(len(values) != rotary.dim // 2 for values in factors if values is not None):
        raise UserError(f"{path}: short_factor and long_factor must have {rotary.dim // 2} numbers each")
    return rotary


def _scaling(kind: str, rope: dict[str, Any], max_positions: int) -> Scaling | None:
    original = rope.get("original_max_position_embeddings") or max_positions
    factor = rope.get("factor") or max_positions / original
    match kind:
        case "linear":
            return LinearScaling(factor=factor)
        case "llama3":
            return Llama3Scaling(
                factor=factor,
                low_freq_factor=rope["low_freq_factor"],
                high_freq_factor=rope["high_freq_factor"],
                original_positions=original,
            )
        case "yarn":
            return YarnScaling(
                factor=factor,
                original_positions=original,
                beta_fast=rope.get("beta_fast") or 32.0,
                beta_slow=rope.get("beta_slow") or 1.0,
                truncate=rope.get("truncate", True),
                amplitude=_yarn_amplitude(factor, rope),
            )
        case "longrope":
            amplitude = rope.get("attention_factor")
            if amplitude is None:
                amplitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
            return LongRopeScaling(
                short_factor=tuple(rope["short_factor"]),
                long_factor=tuple(rope["long_factor"]),
                original_positions=original,
                amplitude=amplitude,
            )
    return None


def _yarn_amplitude(factor: float, rope: dict[str, Any]) -> float:
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])

    def length(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return length(rope["mscale"]) / length(rope["mscale_all_dim"])
    return length(1.0)
