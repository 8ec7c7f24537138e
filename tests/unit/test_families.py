"""Each family read from a `save_pretrained` folder computes what `transformers` computes, gradients included."""

from pathlib import Path

import pytest
import torch

from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.huggingface_weights import load_decoder
from megaokd.models.weight_map import WeightMap
from megaokd.parallel.layout import TensorLayout
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange
from tests.support import families


def load(folder: Path, part: DecoderSlice | None = None) -> Decoder:
    arch = read_architecture(folder)
    part = part or DecoderSlice(range(arch.num_layers))
    decoder = Decoder(arch, part, VocabRange(0, arch.vocab_size, arch.vocab_size), TensorParallel())
    load_decoder(decoder, folder)
    return decoder


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).detach().norm() / theirs.norm())


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
    decoder = load(tmp_path)
    tokens = families.batch()
    assert decoder.head is not None
    logits = decoder.head(decoder(tokens))
    families.loss_of(logits, tokens).backward()
    expected, gradients = families.logits_and_gradients(model)
    assert relative(logits, expected) < 2e-6
    ours = gradients_in_files(decoder)
    aliases = {"lm_head.weight": "embed_out.weight"} if decoder.arch.family == "gpt_neox" else {}
    gradients = {aliases.get(key, key): value for key, value in gradients.items()}
    assert ours.keys() == gradients.keys()
    scale = max(float(value.norm()) for value in gradients.values())
    for key, gradient in gradients.items():
        if decoder.arch.rotary is None and key.endswith("k_proj.bias"):
            # Without rotations it adds the same to all scores of a query: its gradient is zero.
            assert max(float(ours[key].norm()), float(gradient.norm())) < 1e-6 * scale
        else:
            assert relative(ours[key], gradient) < 1e-5, key
