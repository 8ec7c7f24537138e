"""A student that starts from its teacher: which layers, which channels, and a config.json that describes it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from megaokd.config import FromTeacher, Student
from megaokd.errors import UserError
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.from_teacher import chosen_layers, load_from_teacher, student_architecture
from megaokd.models.huggingface_config import derived_config, read_architecture
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange
from megaokd.pipeline.blueprint import configured_student
from tests.support import families

NAMES = ["llama", "qwen2-windows", "qwen3", "gemma3", "phi3", "gpt2", "opt", "gpt_neox"]


def cut(folder: Path, recipe: FromTeacher, rank: int = 0, size: int = 1) -> Decoder:
    """What one rank holds of the student; it reads without its neighbours."""
    teacher = read_architecture(folder)
    arch = student_architecture(recipe, teacher)
    tp = TensorParallel(rank=rank, size=size)
    vocab = VocabRange.split(arch.vocab_size, arch.vocab_size, tp)
    decoder = Decoder(arch, DecoderSlice(range(arch.num_layers)), vocab, tp)
    load_from_teacher(decoder, folder, teacher, chosen_layers(recipe, teacher.num_layers))
    return decoder


def logits_of(decoder: Decoder) -> torch.Tensor:
    assert decoder.head is not None
    logits: torch.Tensor = decoder.head(decoder(families.batch()))
    return logits


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_teacher_is_the_teacher(name: str, tmp_path: Path) -> None:
    model = families.random_model(name)
    families.save(model, tmp_path)
    assert families.relative(logits_of(cut(tmp_path, FromTeacher())), model(families.batch()).logits) < 2e-6


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_layers_are_those_of_the_teacher(name: str, tmp_path: Path) -> None:
    model = families.random_model(name)
    families.save(model, tmp_path)
    shorter = copy.deepcopy(model)
    shorter.model.layers = nn.ModuleList([model.model.layers[0], model.model.layers[2]])
    shorter.config.num_hidden_layers = 2
    if name == "gemma3":
        kinds = shorter.config.layer_types
        shorter.config.layer_types = [kinds[0], kinds[2]]
    for layers in (2, (0, 2)):
        logits = logits_of(cut(tmp_path, FromTeacher(layers=layers)))
        assert families.relative(logits, shorter(families.batch(), use_cache=False).logits) < 2e-6


def test_widths_are_corners_of_the_teacher(tmp_path: Path) -> None:
    """Against a slicing of `transformers`' own tensors, written out: 4 heads on 2 KV heads become 2 on 2."""
    model = families.random_model("llama")
    families.save(model, tmp_path)
    recipe = FromTeacher(hidden_size=24, num_heads=2, num_kv_heads=2, intermediate_size=20)
    heads = torch.cat([torch.arange(8) + 8 * head for head in (0, 2)])  # the first query head of each KV head
    hidden, inner = torch.arange(24), torch.arange(20)
    weights = {}
    for key, tensor in model.state_dict().items():
        rows = next((r for part, r in (("q_proj", heads), ("gate", inner), ("up", inner)) if part in key), hidden)
        whole = any(part in key for part in ("k_proj", "v_proj", "embed", "lm_head"))
        rows = torch.arange(len(tensor)) if whole else rows
        columns = heads if "o_proj" in key else inner if "down_proj" in key else hidden
        weights[key] = tensor[rows][:, columns] if tensor.ndim > 1 else tensor[rows]
    config = copy.deepcopy(model.config)
    config.update({"hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 20})
    expected = LlamaForCausalLM(config)
    expected.load_state_dict(weights)
    assert families.relative(logits_of(cut(tmp_path, recipe)), expected.eval()(families.batch()).logits) < 2e-6


@pytest.mark.parametrize("name", NAMES)
def test_shards_are_slices_of_the_whole(name: str, tmp_path: Path) -> None:
    families.save(families.random_model(name), tmp_path)
    recipe = FromTeacher(layers=(0, 2), hidden_size=16, num_heads=2, intermediate_size=20)
    whole = {key: parameter for key, parameter, _ in cut(tmp_path, recipe).named_layouts()}
    for rank in range(2):
        for key, parameter, layout in cut(tmp_path, recipe, rank, 2).named_layouts():
            assert torch.equal(layout.valid_part(parameter), layout.take(whole[key])), key


@pytest.mark.parametrize("name", NAMES)
def test_its_config_describes_it(name: str, tmp_path: Path) -> None:
    families.save(families.random_model(name), tmp_path)
    arch = student_architecture(
        FromTeacher(layers=(0, 2), hidden_size=16, num_heads=2, intermediate_size=20), read_architecture(tmp_path)
    )
    (tmp_path / "config.json").write_text(json.dumps(derived_config(tmp_path, arch)))
    assert read_architecture(tmp_path) == arch
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert model.get_input_embeddings().weight.shape == (families.VOCABULARY, 16)


def test_a_student_without_a_teacher_and_one_with_two_beginnings_are_told_apart(tmp_path: Path) -> None:
    families.save(families.random_model("llama"), tmp_path)
    with pytest.raises(UserError, match=r"needs a teacher, and this run has none .*method=sft"):
        configured_student(Student(from_teacher=FromTeacher()), None, 64)
    with pytest.raises(UserError, match=r"from_teacher and student\.path exclude one another"):
        configured_student(Student(from_teacher=FromTeacher(), path="x"), read_architecture(tmp_path), 64)


def test_a_count_of_layers_is_spread_evenly() -> None:
    assert chosen_layers(FromTeacher(layers=6), 12) == (0, 2, 4, 7, 9, 11)
    assert chosen_layers(FromTeacher(layers=2), 12) == (0, 11)
    assert chosen_layers(FromTeacher(layers=1), 12) == (0,)
    assert chosen_layers(FromTeacher(), 3) == chosen_layers(FromTeacher(layers=3), 3) == (0, 1, 2)


@pytest.mark.parametrize(
    ("name", "recipe", "message"),
    [
        ("llama", {"layers": 4}, "layers=4, but the teacher has only 3 layers"),
        ("llama", {"layers": (0, 3)}, "ascending numbers from 0 to 2"),
        ("llama", {"layers": (1, 0)}, "ascending numbers"),
        ("llama", {"hidden_size": 33}, "hidden_size=33, but the teacher has only 32"),
        ("llama", {"num_heads": 4, "num_kv_heads": 1}, "are 4 query heads a KV head, but the teacher has 2"),
        ("llama", {"num_heads": 3, "num_kv_heads": 2}, "num_heads=3 is not a multiple"),
        ("gpt2", {"hidden_size": 24, "num_heads": 2}, "hidden_size=24 must be num_heads=2 times 8"),
        ("gpt2", {"hidden_size": 16, "num_heads": 2, "num_kv_heads": 1}, "2 query heads a KV head"),
    ],
)
def test_what_the_teacher_cannot_give(name: str, recipe: dict[str, Any], message: str, tmp_path: Path) -> None:
    families.save(families.random_model(name), tmp_path)
    with pytest.raises(UserError, match=message):
        student_architecture(FromTeacher(**recipe), read_architecture(tmp_path))
