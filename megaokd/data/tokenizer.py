"""Any Hugging Face tokenizer: loading it, encoding with it, and telling whether two have the same vocabulary.

A teacher and a student can be distilled into one another only if each id means the same token to both; the hash of the
vocabulary travels with every token dataset so that this can be refused before a step is made.
"""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megaokd.data.hub import may_be_hub_name
from megaokd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def load_tokenizer(path_or_name: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in a folder, or of a model name that transformers can find.

    Raises:
        UserError: nothing there that transformers can load, or a tokenizer without an end-of-sequence token.
    """
    from transformers import AutoTokenizer

    if Path(path_or_name).is_file():
        raise UserError(f"{path_or_name}: expected a tokenizer's folder, this is a file")
    if not Path(path_or_name).is_dir() and not may_be_hub_name(str(path_or_name)):
        raise UserError(f"{path_or_name}: there is no such tokenizer folder; `megaokd tokenizer` trains one")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path_or_name))
    except Exception as error:  # transformers raises whatever its parsers meet; all of it means the same to the user
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path_or_name}: no tokenizer can be loaded from here ({type(error).__name__}: {reason})"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path_or_name}: the tokenizer has no end-of-sequence token (eos_token); examples need one")
    return tokenizer


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write the tokenizer's files to `folder`, with its sentencepiece model where it was loaded with one."""
    tokenizer.save_pretrained(folder)
    for name in _SENTENCEPIECE_FILES:
        source = Path(tokenizer.name_or_path) / name
        if source.is_file():
            shutil.copyfile(source, folder / name)


def encode_texts(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without bos or eos."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    return ids


def encode_prompts(tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[str]) -> list[list[int]]:
    """[bos] + prompt, exactly what stands before the response in the training data: the start of a generation."""
    start = bos_ids(tokenizer)
    return [start + ids for ids in encode_texts(tokenizer, prompts)]


def bos_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The begin-of-sequence token as a list, empty for tokenizers that have none (Qwen2.5)."""
    return [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]


def vocabulary_size(tokenizer: "PreTrainedTokenizerBase") -> int:
    """One more than the largest token id, added tokens included."""
    return max(tokenizer.get_vocab().values()) + 1


def vocabulary_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 (hexadecimal) of the table id -> token, added tokens included."""
    digest = hashlib.sha256()
    for index, token in sorted(_table(tokenizer).items()):
        digest.update(f"{index}\t{token!r}\n".encode())
    return digest.hexdigest()


def first_difference(a: "PreTrainedTokenizerBase", b: "PreTrainedTokenizerBase") -> str | None:
    """Where two vocabularies part ("id 5 is 'x' in the first and 'y' in the second"); None if they are equal."""
    table_a, table_b = _table(a), _table(b)
    for index in sorted(table_a.keys() | table_b.keys()):
        token_a, token_b = table_a.get(index), table_b.get(index)
        if token_a != token_b:
            return f"id {index} is {_name(token_a)} in the first and {_name(token_b)} in the second"
    return None


def _table(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    return {index: token for token, index in tokenizer.get_vocab().items()}


def _name(token: str | None) -> str:
    return "absent" if token is None else repr(token)
