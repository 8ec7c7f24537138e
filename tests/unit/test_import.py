"""Reading model folders: what is damaged is named, what is not needed is not read, Hub names are folders in a cache."""

import json
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from megaokd.config_file import parse_config
from megaokd.errors import UserError
from megaokd.models import huggingface_weights
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.hub import CONFIG_FILES, fetch_folder, fetch_models
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.huggingface_weights import load_decoder
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange
from tests.support import families

Tensors = dict[str, torch.Tensor]
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


def load(folder: Path, rank: int = 0, size: int = 1, layers: range | None = None) -> Decoder:
    """What one rank holds; it reads without its neighbours."""
    arch = read_architecture(folder)
    tp = TensorParallel(rank=rank, size=size)
    part = DecoderSlice(layers if layers is not None else range(arch.num_layers))
    decoder = Decoder(arch, part, VocabRange.split(arch.vocab_size, arch.vocab_size, tp), tp)
    load_decoder(decoder, folder)
    return decoder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    families.save(families.random_model("llama"), tmp_path)
    return tmp_path


def rewrite(folder: Path, change: Any) -> None:
    tensors = load_file(folder / ONE_FILE)
    change(tensors)
    save_file(tensors, folder / ONE_FILE)


def drop(tensors: Tensors) -> None:
    del tensors["model.layers.1.self_attn.k_proj.bias"]


def add(tensors: Tensors) -> None:
    tensors["model.layers.3.input_layernorm.weight"] = torch.ones(32)


def reshape(tensors: Tensors) -> None:
    tensors["model.layers.2.mlp.down_proj.weight"] = torch.ones(32, 47)


def quantize(tensors: Tensors) -> None:
    tensors["model.norm.weight"] = torch.ones(32, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"'model.layers.1.self_attn.k_proj.bias' is missing; expected shape \[16\]"),
        (add, r"model.safetensors: the tensor 'model.layers.3.input_layernorm.weight' \[32\] has no place"),
        (reshape, r"down_proj.weight has shape \[32, 47\], config.json says \[32, 48\]"),
        (quantize, "model.norm.weight is stored as I8"),
    ],
)
def test_a_wrong_tensor_is_named(folder: Path, change: Any, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(UserError, match=message):
        load(folder, layers=range(1))  # whichever layers a rank holds


def test_a_truncated_file_is_named_with_its_first_lost_tensor(folder: Path) -> None:
    path = folder / ONE_FILE
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - 5)
    with pytest.raises(UserError, match=rf"cut short: {size - 5} of {size} bytes, from the tensor 'model.norm.weight'"):
        load(folder)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be read as safetensors"):
        load(folder)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    model = families.random_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    return tmp_path


def test_shards_are_read_through_their_index(shards: Path) -> None:
    model = families.random_model("llama")
    decoder = load(shards)
    assert torch.equal(decoder.layers["2"].mlp.up_proj.weight, model.model.layers[2].mlp.up_proj.weight)


def test_an_index_that_does_not_fit_its_files(shards: Path) -> None:
    index = json.loads((shards / INDEX).read_text())
    name, file = next(iter(index["weight_map"].items()))
    other = next(value for value in index["weight_map"].values() if value != file)
    (shards / INDEX).write_text(json.dumps({**index, "weight_map": {**index["weight_map"], name: other}}))
    with pytest.raises(UserError, match=f"the tensor {re.escape(repr(name))} is not"):
        load(shards)
    (shards / INDEX).write_text(json.dumps(index))
    (shards / other).unlink()
    with pytest.raises(UserError, match=rf"{other}: cannot be read as safetensors"):
        load(shards)
    (shards / INDEX).write_text("{}")
    with pytest.raises(UserError, match="has no weight_map"):
        load(shards)


def test_a_pickle_is_refused_with_a_command_that_converts_it(folder: Path) -> None:
    torch.save(load_file(folder / ONE_FILE), folder / "pytorch_model.bin")
    (folder / ONE_FILE).unlink()
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle.*convert it: python -c") as refused:
        load(folder)
    command = re.search(r'python -c "(.*)"$', str(refused.value))
    assert command is not None
    exec(command[1])
    load(folder)


@pytest.mark.parametrize(("name", "prefix"), [("gpt2", "transformer."), ("opt", "model.")])
def test_names_without_prefix_and_saved_buffers(tmp_path: Path, name: str, prefix: str) -> None:
    model = families.random_model(name)
    families.save(model, tmp_path)
    expected = {key: parameter.clone() for key, parameter in load(tmp_path).named_parameters()}
    tensors = {key.removeprefix(prefix): tensor for key, tensor in load_file(tmp_path / ONE_FILE).items()}
    if name == "gpt2":
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)
    save_file(tensors, tmp_path / ONE_FILE)
    assert all(torch.equal(parameter, expected[key]) for key, parameter in load(tmp_path).named_parameters())


def test_a_rank_holds_its_shard_and_one_part_of_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is that of the process as the kernel counts it, without pages of mapped files."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 2, "vocab_size": 32000}
    config = LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(tmp_path, max_shard_size="80MB")
    arch = read_architecture(tmp_path)
    tp = TensorParallel(rank=3, size=4)
    decoder = Decoder(arch, DecoderSlice(range(2)), VocabRange.split(32000, 32000, tp), tp)
    for parameter in decoder.parameters():
        parameter.data.zero_()  # its pages are counted before loading begins
    held, parts, memory = sum(p.nbytes for p in decoder.parameters()), [0], []
    before = anonymous_memory()
    read = huggingface_weights.read_region

    def watched(*arguments: Any) -> torch.Tensor:
        part = read(*arguments)
        part.sum()  # every page of it is there
        parts.append(part.nbytes)
        memory.append(anonymous_memory() - before)
        return part

    monkeypatch.setattr(huggingface_weights, "read_region", watched)
    load_decoder(decoder, tmp_path)
    assert max(parts) == 8000 * 512 * 4
    assert sum(parts) <= held
    assert max(memory) <= max(parts) + 4e6, f"{max(memory) / 1e6:.0f} MB beside the shard"


def anonymous_memory() -> int:
    """Bytes of this process that belong to no file."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def test_a_hub_name_is_its_folder_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert huggingface_hub.constants.HF_HUB_OFFLINE, "tests never ask the network"
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--somebody--tiny"
    families.save(families.random_model("qwen2"), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    for name in ("somebody/tiny", f"somebody/tiny@{commit}"):
        found = fetch_folder(name)
        assert found is not None
        assert Path(found) == cached / "snapshots" / commit
        load(Path(found))
    assert "megaokd: there is no folder somebody/tiny; asking the Hugging Face Hub" in capsys.readouterr().err
    with pytest.raises(UserError, match="nobody/tiny: there is no such folder, and the Hugging Face Hub"):
        fetch_folder("nobody/tiny")
    with pytest.raises(UserError, match="somebody/tiny@v2: there is no such folder"):
        fetch_folder("somebody/tiny@v2")
    assert fetch_folder(str(tmp_path)) == str(tmp_path)
    assert fetch_folder("./missing") == "./missing"
    (cached / "snapshots" / commit / "model.safetensors").unlink()
    values = {"data": {"train": "x"}, "train": {"steps": 1}, "checkpoint": {"folder": "r"}}
    config = parse_config({**values, "teacher": {"path": "somebody/tiny"}})
    found = fetch_models(config, CONFIG_FILES).teacher.path
    assert found is not None
    assert read_architecture(found).family == "qwen2", "a plan needs no weights"
