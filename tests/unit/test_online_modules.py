"""Online modules on a whole decoder: where they sit, that they begin as nothing, what the original teacher costs."""

from typing import Any

import pytest
import torch

from megaokd.config import Architecture, OnlineModules
from megaokd.distill.online_modules import (
    adapted_and_original,
    attach_online_modules,
    first_online_layer,
    online_modules,
    original_teacher,
)
from megaokd.errors import UserError
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.initialize import freeze, initialize_decoder
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange

LAYERS, VOCABULARY, HIDDEN = 4, 23, 16
TOKENS = torch.arange(12).view(2, 6)
# options -> names of what carries a module
PLACES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "lora": (
        {"layers": 2, "targets": ["k_proj", "o_proj", "up_proj"]},
        {f"layers.{n}.{name}" for n in (2, 3) for name in ("self_attn.k_proj", "self_attn.o_proj", "mlp.up_proj")},
    ),
    "bottleneck": ({"layers": 3}, {"layers.1", "layers.2", "layers.3"}),
    "head": ({}, {""}),
}


def teacher(kind: str, **options: Any) -> Decoder:
    arch = DecoderArchitecture.from_config(
        Architecture(hidden_size=HIDDEN, num_layers=LAYERS, num_heads=2, tied_head=False), VOCABULARY
    )
    vocab = VocabRange(0, VOCABULARY, VOCABULARY)
    decoder = Decoder(arch, DecoderSlice(range(LAYERS)), vocab, TensorParallel())
    initialize_decoder(decoder, seed=0)
    freeze(decoder.parameters())
    attach_online_modules(decoder, OnlineModules(kind=kind, rank=3, **options), seed=1)  # type: ignore[arg-type]
    return decoder


def move(decoder: Decoder) -> None:
    """Give every module a last matrix that is not zero."""
    for name, parameter in decoder.named_parameters():
        if name.endswith((".lora_B", ".up")):
            torch.nn.init.normal_(parameter)


@pytest.mark.parametrize("kind", PLACES)
def test_modules_sit_where_they_were_asked_for_and_begin_as_nothing(kind: str) -> None:
    options, places = PLACES[kind]
    decoder = teacher(kind, **options)
    trained = {name for name, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert {name.rpartition("online.")[0].removesuffix(".") for name in trained} == places
    assert len(online_modules(decoder)) == len(places)
    with original_teacher(decoder):
        before = decoder(TOKENS)
    assert torch.equal(decoder(TOKENS), before)
    move(decoder)
    assert not torch.allclose(decoder(TOKENS), before, rtol=0.01)
    with original_teacher(decoder):
        assert torch.equal(decoder(TOKENS), before)


@pytest.mark.parametrize("kind", PLACES)
def test_the_original_teacher_beside_the_adapted_one(kind: str) -> None:
    """Both at once equal each alone; what is below the first module runs once, and only the adapted one is trained."""
    options, _ = PLACES[kind]
    decoder = teacher(kind, **options)
    move(decoder)
    with original_teacher(decoder):
        expected_original = decoder(TOKENS)
    expected = decoder(TOKENS)
    runs = [0] * LAYERS
    for index in range(LAYERS):

        def count(*_: object, index: int = index) -> None:
            runs[index] += 1

        decoder.layers[str(index)].register_forward_hook(count)
    first = first_online_layer(OnlineModules(kind=kind, **options), LAYERS)  # type: ignore[arg-type]
    adapted, original = adapted_and_original(decoder, TOKENS, None, first)
    assert runs == [1] * first + [2] * (LAYERS - first)
    assert torch.equal(adapted, expected)
    assert torch.equal(original, expected_original)
    assert adapted.requires_grad
    assert not original.requires_grad
    assert all(module.enabled for module in online_modules(decoder))


def test_a_head_keeps_backward_out_of_every_layer() -> None:
    decoder = teacher("head")
    assert not decoder.run_below(TOKENS, LAYERS).requires_grad
    assert decoder(TOKENS).requires_grad


def test_a_linear_layer_that_the_teacher_does_not_have_is_named() -> None:
    decoder = teacher("head")
    for layer in decoder.layers.values():
        layer.mlp.gate_proj = None
    with pytest.raises(UserError, match=r"this teacher has no gate_proj; it has q_proj, k_proj"):
        attach_online_modules(decoder, OnlineModules(targets=("q_proj", "gate_proj")), seed=0)
    attach_online_modules(decoder, OnlineModules(layers=1), seed=0)
    assert len(online_modules(decoder)) == 1 + 6


def test_more_layers_than_there_are() -> None:
    with pytest.raises(UserError, match=r"teacher.online.layers=5, but the teacher has only 4 layers"):
        first_online_layer(OnlineModules(kind="bottleneck", layers=5), LAYERS)
