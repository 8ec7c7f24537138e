"""Each family read from a `save_pretrained` folder computes what `transformers` computes, gradients included."""

from pathlib import Path

import pytest
import torch

from megaokd.models.decoder import Decoder
from megaokd.models.weight_map import WeightMap
from megaokd.parallel.layout import TensorLayout
from megaokd.precision import autocast
from tests.support import families


def gradients_in_files(decoder: Decoder) -> dict[str, torch.Tensor]:
    """Our gradients under the names and in the form of the family's files."""
    places = WeightMap(decoder.arch)
    found: dict[str, torch.Tensor] = {}
    for name, parameter, _ in decoder.named_layouts():
        assert parameter.grad is not None, name
        shape = tuple(parameter.shape)
        location = places.locate(name, shape)
        whole = found.setdefault(location.tensor, torch.zeros(location.file_shape(shape)))
        for rows, region in location.regions(TensorLayout(), shape):
            whole[region] += parameter.grad[rows].T if location.transposed else parameter.grad[rows]
    return found


@pytest.mark.parametrize("name", families.CASES)
def test_logits_and_gradients(name: str, tmp_path: Path) -> None:
    model = families.random_model(name)
    families.save(model, tmp_path)
    decoder = families.load(tmp_path)
    tokens = families.batch()
    assert decoder.head is not None
    logits = decoder.head(decoder(tokens))
    families.loss_of(logits, tokens).backward()
    expected, gradients = families.logits_and_gradients(model)
    assert families.relative(logits, expected) < 2e-6
    families.compare_gradients(name, gradients_in_files(decoder), gradients)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt_neox", "gpt_neox-serial"])
def test_logits_in_float64(name: str, tmp_path: Path) -> None:
    """Where `transformers` keeps to fp64 (its RMS norms and eager softmax do not), only fp64 rounding is left."""
    model = families.random_model(name, attention="sdpa").double()
    families.save(model, tmp_path)
    decoder = families.load(tmp_path, dtype=torch.float64)
    assert decoder.head is not None
    logits = decoder.head(decoder(families.batch()))
    assert logits.dtype == torch.float64
    assert families.relative(logits, model(families.batch()).logits) < 1e-13


def test_frozen_weights_stay_bf16(tmp_path: Path) -> None:
    model = families.random_model("phi3").bfloat16()
    families.save(model, tmp_path)
    decoder = families.load(tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    fused = dict(model.named_parameters())["model.layers.1.mlp.gate_up_proj.weight"]
    mlp = decoder.layers["1"].mlp
    assert torch.equal(torch.cat((mlp.gate_proj.weight, mlp.up_proj.weight)), fused)


@pytest.mark.parametrize("name", ["llama-llama3", "qwen3", "gemma3", "phi3", "gpt2", "opt", "gpt_neox"])
def test_bf16_is_no_further_from_the_truth_than_transformers(name: str, tmp_path: Path) -> None:
    """A frozen teacher in bf16 under autocast, and the same model in bf16, against fp32 with the same weights."""
    model = families.random_model(name, attention="sdpa").bfloat16()
    families.save(model, tmp_path)
    tokens = families.batch()
    with torch.no_grad():
        theirs = model(tokens).logits.float()
        truth = model.float()(tokens).logits
        decoder = families.load(tmp_path, dtype=torch.bfloat16)
        assert decoder.head is not None
        with autocast("bf16", tokens.device):
            ours = decoder.head(decoder(tokens)).float()
    assert families.relative(ours, truth) <= 1.05 * families.relative(theirs, truth)
