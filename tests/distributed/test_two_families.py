"""Whole runs with a teacher by its Hub name: a student of another family, padded differently, or a part of it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from megaokd.evaluation.export_check import check_export
from tests.support.launch import must, torchrun
from tests.support.tiny import TinyWorld

COMMIT = "0123456789abcdef0123456789abcdef01234567"
METRICS = ("train/", "gradient_norm/")


def save(model: PreTrainedModel, folder: Path, tokenizer: Path) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = any(part in name for part in ("norm", "ln_")) and name.endswith("weight")
            parameter.uniform_(0.5, 1.5) if is_norm else parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


@pytest.fixture
def config(tiny_world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    teacher = Qwen3Config(
        vocab_size=333,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    no_ids = {"bos_token_id": None, "eos_token_id": None}
    student = GPT2Config(vocab_size=320, n_embd=16, n_layer=3, n_head=2, n_positions=96, **no_dropout, **no_ids)
    cached = tmp_path / "hub" / "models--somebody--teacher"
    save(Qwen3ForCausalLM(teacher), cached / "snapshots" / COMMIT, tiny_world.root / "tokenizer")
    save(GPT2LMHeadModel(student), tmp_path / "student", tiny_world.root / "tokenizer")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    values = tiny_world.config(tmp_path / "run")
    values["teacher"]["path"], values["student"]["path"] = "somebody/teacher", str(tmp_path / "student")
    values["train"]["steps"] = 4
    return values


@pytest.mark.slow
def test_layouts_agree_and_the_student_goes_back(config: dict[str, Any], tmp_path: Path) -> None:
    histories, students = {}, {}
    for name, processes, layout in (("one", 1, {}), ("four", 4, {"tensor": 2, "pipeline": 2})):
        folder = tmp_path / name
        file = tmp_path / f"{name}.yaml"
        file.write_text(json.dumps({**config, "parallel": layout, "checkpoint": {"folder": str(folder)}}))
        must(torchrun(processes, "-m", "megaokd.cli", "train", file))
        records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        kept = [record for record in records if record["kind"] == "train"]
        histories[name] = [[value for key, value in sorted(step.items()) if key.startswith(METRICS)] for step in kept]
        parts = sorted((folder / "student").glob("*.safetensors"))
        students[name] = {key: tensor for part in parts for key, tensor in load_file(part).items()}
        check_export(folder)
    one, four = (torch.tensor(histories[name], dtype=torch.float64) for name in ("one", "four"))
    assert one.shape[0] == 4
    assert one.shape[1] >= 6
    torch.testing.assert_close(four, one, rtol=1e-5, atol=1e-8)
    original = load_file(tmp_path / "student" / "model.safetensors")
    assert students["one"].keys() == students["four"].keys() == original.keys()
    for key, tensor in students["one"].items():
        assert tensor.shape == original[key].shape
        assert not torch.equal(tensor, original[key]), f"{key} was not trained"
        pairs = zip(tensor.chunk(3), students["four"][key].chunk(3), strict=True)
        for part, (alone, split) in enumerate(pairs):
            # A bias of the keys adds the same to all scores of a query: its gradient is rounding, which Adam scales up.
            if not (key.endswith("c_attn.bias") and part == 1):
                torch.testing.assert_close(split, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_student_that_starts_from_the_teacher(config: dict[str, Any], tmp_path: Path) -> None:
    recipe = {"layers": [0, 2, 3], "hidden_size": 24, "num_heads": 2, "intermediate_size": 48}
    folder = tmp_path / "run"
    values = {**config, "student": {"from_teacher": recipe}, "parallel": {"tensor": 2}}
    values["checkpoint"]["export_dtype"] = "bfloat16"
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    must(torchrun(2, "-m", "megaokd.cli", "train", tmp_path / "run.yaml"))
    check_export(folder)
    written = json.loads((folder / "student" / "config.json").read_text())
    assert (written["model_type"], written["num_hidden_layers"], written["hidden_size"]) == ("qwen3", 3, 24)
    assert (written["num_attention_heads"], written["num_key_value_heads"], written["head_dim"]) == (2, 1, 12)
    assert written["dtype"] == "bfloat16"
    teacher = load_file(tmp_path / "hub" / "models--somebody--teacher" / "snapshots" / COMMIT / "model.safetensors")
    student = load_file(folder / "student" / "model.safetensors")
    assert {tensor.dtype for tensor in student.values()} == {torch.bfloat16}
    start = teacher["model.layers.2.mlp.up_proj.weight"][:48, :24]
    moved = (student["model.layers.1.mlp.up_proj.weight"] - start).abs().max()
    assert 0 < moved < 0.02, "four steps away from where it started"
