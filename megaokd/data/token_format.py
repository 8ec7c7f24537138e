"""The token dataset on disk, version 1: a folder that holds everything training needs from the data.

    tokens.bin    the token ids of all examples, one after another; uint16 where the vocabulary fits, else uint32
    index.npy     int64 [examples, 3]: first token in tokens.bin, number of tokens, prompt length
    meta.json     the fields of `Meta`
    malformed.txt one line for each record that was left out, where there were any
    tokenizer/    the tokenizer's own files, so that an exported student can carry them

The prompt length counts the leading tokens whose prediction carries no loss. The first token of an example is never
predicted, so it is at least 1.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megaokd.errors import UserError

FORMAT_VERSION = 1
TOKENS_FILE = "tokens.bin"
INDEX_FILE = "index.npy"
META_FILE = "meta.json"
MALFORMED_FILE = "malformed.txt"
TOKENIZER_FOLDER = "tokenizer"


@dataclass(frozen=True, kw_only=True)
class Meta:
    """meta.json."""

    format_version: int = FORMAT_VERSION
    kind: Literal["instruction", "text"]
    num_examples: int
    num_tokens: int
    num_loss_tokens: int
    vocab_size: int
    """One more than the largest token id of the tokenizer."""
    vocabulary_hash: str
    fingerprint: str
    """sha256 of the tokens, the index and the vocabulary hash."""

    def write(self, folder: Path) -> None:
        """Write meta.json."""
        (folder / META_FILE).write_text(json.dumps(dataclasses.asdict(self), indent=2) + "\n", encoding="utf-8")


def read_meta(folder: Path) -> Meta:
    """Read and check meta.json.

    Raises:
        UserError: not a token dataset, one of another format version, or a damaged meta.json.
    """
    path = folder / META_FILE
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such token dataset; `megaokd preprocess` writes one")
    if not path.is_file():
        raise UserError(f"{folder}: not a token dataset (no {META_FILE}); `megaokd preprocess` writes one")
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run `megaokd preprocess` again") from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {version}, this program reads {FORMAT_VERSION}; run `megaokd preprocess` again"
        )
    fields = {field.name: field.type for field in dataclasses.fields(Meta)}
    for name, kind in fields.items():
        expected = int if kind is int else str
        if not isinstance(values.get(name), expected):
            raise UserError(f"{path}: {name} is missing or damaged; run `megaokd preprocess` again")
    return Meta(**{name: values[name] for name in fields})


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The dtype of tokens.bin."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
