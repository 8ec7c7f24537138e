"""A tiny world for end-to-end tests: a tokenizer, token data, a teacher and a student in Hugging Face folders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from megaokd.cli import main

# 4 query heads on 2 KV heads: tensor-parallel 4 replicates KV. 4 layers: up to 4 stages.
TEACHER = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "tie_word_embeddings": False,
}
STUDENT = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "intermediate_size": 32,
    "tie_word_embeddings": True,
    "attention_bias": True,
    "mlp_bias": True,
}


@dataclass(frozen=True)
class TinyWorld:
    """Folders of a tiny run."""

    root: Path

    @property
    def train(self) -> str:
        return str(self.root / "train")

    @property
    def validation(self) -> str:
        return str(self.root / "validation")

    @property
    def teacher(self) -> str:
        return str(self.root / "teacher")

    @property
    def student(self) -> str:
        return str(self.root / "student")

    def config(self, folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
        """A complete configuration of a short OKD run; `sections` are merged over it, one level deep."""
        values: dict[str, dict[str, Any]] = {
            "data": {"train": self.train, "validation": self.validation, "sequence_length": 96, "bucket": 8},
            "teacher": {"path": self.teacher, "online": {"rank": 4, "alpha": 8.0, "layers": 2}},
            "student": {"path": self.student},
            "optimizer": {"student": {"lr": 1e-3}, "online": {"lr": 1e-3}},
            "train": {"steps": 10, "global_batch": 8, "micro_batch": 2},
            "checkpoint": {"folder": str(folder)},
            "logging": {"progress": False, "every": 1},
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        return values


def build_tiny_world(root: Path) -> TinyWorld:
    """Build the data through the public commands, the models through transformers (random weights)."""
    texts = [
        (f"def item_{n}(value: int, other: str = '{n}') -> int:", f"Return item {n} of the list, or {n * 7} if none.")
        for n in range(120)
    ]
    for name, part in (("train", texts[:96]), ("validation", texts[96:])):
        lines = [json.dumps({"prompt": prompt + "\n", "response": response}) for prompt, response in part]
        (root / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run("tokenizer", "--input", root / "train.jsonl", "--output", root / "tokenizer", "--vocab-size", "301")
    for name in ("train", "validation"):
        run("preprocess", "--input", root / f"{name}.jsonl", "--tokenizer", root / "tokenizer", "--output", root / name)
    vocab_size = json.loads((root / "train" / "meta.json").read_text())["vocab_size"]
    for seed, (name, shape, padded) in enumerate((("teacher", TEACHER, 320), ("student", STUDENT, vocab_size))):
        save_random_llama(root / name, root / "tokenizer", shape, padded, seed)
    return TinyWorld(root)


def short_data(world: TinyWorld) -> str:
    """A data set of examples of which several fit into a row."""
    folder = world.root / "short"
    if not folder.exists():
        records = [{"prompt": f"item {n}", "response": f" is {n * 7}" * (n % 5 + 1)} for n in range(90)]
        file = folder.with_suffix(".jsonl")
        file.write_text("".join(f"{json.dumps(record)}\n" for record in records))
        run("preprocess", "--input", file, "--tokenizer", world.root / "tokenizer", "--output", folder)
    return str(folder)


def save_random_llama(folder: Path, tokenizer: Path, shape: dict[str, Any], vocab_size: int, seed: int) -> None:
    """A Llama whose every weight, norms and biases included, is random and not small."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, max_position_embeddings=128, **shape))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())


def run(*arguments: object) -> None:
    """Run a `megaokd` command in this process; it must succeed."""
    status = main([str(argument) for argument in arguments])
    assert status == 0, arguments
