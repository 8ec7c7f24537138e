"""Each family, split over two processes: the logits and gradients of `transformers`, and an export equal in every byte.

One launch of two processes reads all models in all layouts (`family_worker.py`).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from megaokd.generation.generate import generate
from tests.support import families
from tests.support.launch import ROOT, forked, must
from tests.support.tiny import TinyWorld

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
    must(forked(2, "-m", "tests.distributed.family_worker", root, timeout=300))
    return root, expected


@pytest.mark.parametrize("options", families.GENERATIONS)
@pytest.mark.parametrize("name", families.CASES)
def test_tensor_parallel_ranks_generate_what_one_process_does(
    world: tuple[Path, dict[str, Expected]], name: str, options: str
) -> None:
    folder = world[0] / name
    alone = generate(
        families.load(folder / "model"), families.batch()[:, :20].tolist(), families.GENERATIONS[options], eos_id=2
    )
    for layout in ("tp2", "tp2-sequence"):
        assert json.loads((folder / layout / f"generations-{options}.json").read_text()) == [alone, alone]


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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", families.ADAPTED)
def test_the_adapted_teacher_in_peft_and_merged(
    world: tuple[Path, dict[str, Expected]], name: str, layout: str
) -> None:
    root, expected = world
    output = root / name / layout
    ours = load_file(output / "adapted.safetensors")["logits"]
    assert families.relative(ours, expected[name].logits) > 1e-2, "the modules do something"
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(root / name / "model"), output / "adapter")
    assert families.relative(adapted.eval()(families.batch()).logits, ours) < 2e-6
    with_peft = adapted.merge_and_unload()
    assert families.relative(with_peft(families.batch()).logits, ours) < 2e-6
    merged = AutoModelForCausalLM.from_pretrained(output / "merged")
    assert families.relative(merged.eval()(families.batch()).logits, ours) < 2e-6


@pytest.mark.parametrize("name", families.ADAPTED)
def test_every_layout_exports_the_same_adapter(world: tuple[Path, dict[str, Expected]], name: str) -> None:
    first, *others = (load_folder(world[0] / name / layout / "adapter") for layout in LAYOUTS)
    for other in others:
        assert_same_bytes(other, first)


def test_ranks_wait_for_a_slow_disk(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """Longer than for one another: NCCL ends the ranks whose collective waits for `train.timeout_s`."""
    must(forked(2, ROOT / "tests" / "distributed" / "slow_disk_worker.py", tiny_world.student, tmp_path))
    written, read = (load_file(Path(folder) / "model.safetensors") for folder in (tmp_path, tiny_world.student))
    assert written.keys() == read.keys()
