"""Each family, split over two processes: the logits and gradients of `transformers`, and an export equal in every byte.

One launch of two processes reads all models in all layouts (`family_worker.py`).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support import families
from tests.support.launch import must, torchrun

LAYOUTS = ("tp2", "tp2-sequence", "pp2")
IN_BF16 = "gpt_neox"


@dataclass
class Expected:
    """What `transformers` computes."""

    logits: torch.Tensor
    gradients: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Expected]]:
    root = tmp_path_factory.mktemp("families")
    expected = {}
    for name in families.CASES:
        model = families.random_model(name)
        folder = root / name / "model"
        families.save(model, folder)
        expected[name] = Expected(*families.logits_and_gradients(model))
    families.save(families.random_model(IN_BF16).bfloat16(), root / "bf16" / "model")
    must(torchrun(2, "-m", "tests.distributed.family_worker", root, timeout=300))
    return root, expected


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", families.CASES)
def test_logits_and_gradients(world: tuple[Path, dict[str, Expected]], name: str, layout: str) -> None:
    root, expected = world
    logits = load_file(root / name / layout / "logits.safetensors")["logits"]
    assert families.relative(logits, expected[name].logits) < 2e-6
    families.compare_gradients(name, load_folder(root / name / layout / "gradients"), expected[name].gradients)


def assert_same_bytes(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype, key
        assert ours[key].shape == tensor.shape, key
        assert torch.equal(ours[key].view(torch.uint8), tensor.view(torch.uint8)), key


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bf16_weights_are_byte_equal(world: tuple[Path, dict[str, Expected]], layout: str) -> None:
    theirs = load_folder(world[0] / "bf16" / "model")
    assert {tensor.dtype for tensor in theirs.values()} == {torch.bfloat16}
    assert_same_bytes(load_folder(world[0] / "bf16" / layout / "export"), theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", families.CASES)
def test_export_is_byte_equal(world: tuple[Path, dict[str, Expected]], name: str, layout: str) -> None:
    original, export = world[0] / name / "model", world[0] / name / layout / "export"
    assert_same_bytes(load_folder(export), load_folder(original))
    beside = {file.name for file in original.iterdir() if file.suffix != ".safetensors"}
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= beside
    for file in beside:
        assert (export / file).read_bytes() == (original / file).read_bytes(), file


@pytest.mark.parametrize("name", families.CASES)
def test_transformers_loads_and_generates(world: tuple[Path, dict[str, Expected]], name: str) -> None:
    root, expected = world
    folder = root / name / "pp2" / "export"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert families.relative(model.eval()(families.batch()).logits, expected[name].logits) < 2e-6
    written = model.generate(families.batch()[:1, :5], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert written.shape == (1, 9)
