"""Initial weights that do not depend on the layout.

Every global tensor has a random stream of its own, seeded by the run's seed and the tensor's name. A rank draws the
whole tensor and keeps its slice, so the same seed gives the same global weights for every tp, pp and dp. It costs a
rank the memory of one global tensor at a time.
"""

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import nn

from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder
from megaokd.parallel.layout import TensorLayout

Fill = Callable[[torch.Tensor, torch.Generator], object]
"""Fill a whole tensor in place from a generator; what it returns is not used."""


def seeded_generator(seed: int, name: str) -> torch.Generator:
    """The random stream of one named tensor."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@torch.no_grad()
def fill_slice(parameter: nn.Parameter, layout: TensorLayout, name: str, seed: int, fill: Fill) -> None:
    """Draw the global tensor called `name` and copy this rank's slice; padding becomes zero."""
    whole = torch.empty(layout.global_shape(parameter.shape), dtype=torch.float32)
    fill(whole, seeded_generator(seed, name))
    parameter.zero_()
    layout.valid_part(parameter).copy_(layout.take(whole))


def initialize_decoder(decoder: Decoder, seed: int) -> None:
    """Normal weights (standard deviation `initializer_range`), unit norms, zero biases.

    A tied head on another stage than its embedding draws the embedding's stream, so both copies are equal.
    """
    for name, parameter, layout in decoder.named_layouts():
        source = "embed_tokens.weight" if name == "head.weight" and decoder.arch.tied_head else name
        fill_slice(parameter, layout, source, seed, _fill_for(name, decoder.arch))


def _fill_for(name: str, arch: DecoderArchitecture) -> Fill:
    if name.endswith("norm.weight"):
        return lambda whole, _: whole.fill_(1.0 - arch.norm_offset)
    if name.endswith(".bias"):
        return lambda whole, _: whole.zero_()
    return lambda whole, generator: whole.normal_(0.0, arch.initializer_range, generator=generator)


def freeze(parameters: Iterable[nn.Parameter]) -> None:
    """Mark parameters as constants: no gradient, no optimizer state."""
    for parameter in parameters:
        parameter.requires_grad_(False)
