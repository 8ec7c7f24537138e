"""Small token datasets for the tests of the data path."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from megaokd.data.dataset import TokenDataset
from megaokd.data.examples import Example
from megaokd.data.preprocess import preprocess
from megaokd.data.tokenizer_training import train_tokenizer

EXAMPLES = [
    Example(f"def item_{n}(value):\n", f"Return item {n}" + " of the list, or of a longer one" * (n % 5) + ".")
    for n in range(50)
]


def tokenizer_folder(folder: Path, vocab_size: int = 300) -> Path:
    """A tokenizer trained on EXAMPLES."""
    train_tokenizer((f"{example.prompt}{example.response}" for example in EXAMPLES), folder, vocab_size=vocab_size)
    return folder


def token_dataset(folder: Path, examples: Sequence[Example] = EXAMPLES) -> TokenDataset:
    """`examples` tokenized with that tokenizer."""
    records = [{"prompt": example.prompt, "response": example.response} for example in examples]
    source = write_jsonl(folder / "examples.jsonl", records)
    preprocess([str(source)], str(tokenizer_folder(folder / "tokenizer")), folder / "data")
    return TokenDataset(folder / "data")


def write_jsonl(path: Path, records: Iterable[Any]) -> Path:
    """One record a line."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
