"""What a family is described by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a module of ours lies in the family's files."""

    module: str
    """Its name there; `{}` is the layer."""
    parts: tuple[str, ...] = ()
    """Our projections that share its weight and bias, in the order of its output rows; empty: this one alone."""
    interleaved: bool = False
    """The parts alternate head by head, instead of following one another."""
    transposed: bool = False
    """Its weight is [in, out]."""


def shared(module: str, *parts: str, interleaved: bool = False, transposed: bool = False) -> dict[str, Place]:
    """Places of projections that lie in one matrix; keys are their names."""
    return dict.fromkeys(parts, Place(module, parts, interleaved, transposed))


@dataclass(frozen=True, kw_only=True)
class Family:
    """The config.json and the tensors of one `model_type`.

    Keys are those of config.json as the current `transformers` writes it. A key that is in none of the mappings below
    is refused.
    """

    model_type: str
    architecture: str
    """The class in `transformers`."""
    top: Mapping[str, str]
    """Our modules outside the layers: embed_tokens, norm, head, embed_positions."""
    layer_prefix: str
    """In front of what `layers` names; `{}` is the layer."""
    layers: Mapping[str, str | Place]
    """Our modules in a layer."""
    fields: Mapping[str, str | tuple[str, ...]]
    """Key -> field, or fields, of the architecture."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the architecture that the family decides."""
    required: Mapping[str, Any] = field(default_factory=dict)
    """Keys that must have this value."""
    equal: Mapping[str, str] = field(default_factory=dict)
    """Keys that must have the value of another key."""
    dropouts: tuple[str, ...] = ("attention_dropout",)
    """Keys of dropout probabilities."""
    neutral: frozenset[str] = frozenset()
    """Keys that do not change what the model computes, beside those of `huggingface_config.NEUTRAL`."""
    optional_prefix: str = ""
    """Some of its folders leave this away at the beginning of every name."""
    buffers: tuple[str, ...] = ()
    """Endings of tensors that some folders hold beside the weights; they are not read."""
