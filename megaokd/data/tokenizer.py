"""Any Hugging Face or sentencepiece tokenizer: loading it, encoding, telling whether two have the same vocabulary.

A teacher and a student can be distilled into one another only if each id means the same token to both; the hash of the
vocabulary travels with every token dataset so that this can be refused before a step is made.
"""

import hashlib
import shutil
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from megaokd.data.hub import may_be_hub_name, tell_hub_name
from megaokd.data.sentencepiece_model import from_sentencepiece, probes
from megaokd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_BATCH = 1000  # texts at once: their encodings should not leave the caches
_PROBES = (
    "A plain sentence, 1234.",
    "  two  spaces ",
    "caf\u00e9 \u6f22\u5b57 \U0001f600",
    "a\tb\n\nc",
    "\uff21\ufb01 e\u0301",
)


def load_tokenizer(path_or_name: str | Path, *, eos_token: str | None = None) -> "PreTrainedTokenizerBase":
    """The tokenizer in a folder, in a file (tokenizer.json or a sentencepiece .model), or of a name on the hub.

    Args:
        path_or_name: where it is.
        eos_token: the end-of-sequence token, for a file that does not say which it is.

    Raises:
        UserError: nothing there that transformers can load, a sentencepiece model that it cannot represent, or a
            tokenizer without an end-of-sequence token.
    """
    path = Path(path_or_name)
    if not path.exists() and not may_be_hub_name(str(path_or_name)):
        raise UserError(f"{path_or_name}: there is no such tokenizer folder; `megaokd tokenizer` trains one")
    if not path.exists():
        tell_hub_name(str(path_or_name))
    if path.is_file() and path.suffix not in (".json", ".model"):
        raise UserError(f"{path_or_name}: expected a tokenizer's folder, a tokenizer.json or a sentencepiece .model")
    try:
        tokenizer = _load(path_or_name)
    except Exception as error:  # transformers raises whatever its parsers meet; all of it means the same to the user
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if path.exists():
            raise UserError(f"{path_or_name}: no tokenizer can be loaded from here ({reason})") from error
        raise UserError(
            f"{path_or_name}: there is no such folder, and the Hugging Face Hub does not give a tokenizer of this name "
            f"({reason})"
        ) from error
    if path.suffix == ".model" and path.is_file():
        _check_conversion(tokenizer, path)
    if eos_token is not None:
        if eos_token not in tokenizer.get_vocab():
            raise UserError(f"{path_or_name}: the vocabulary has no token {eos_token!r}")
        tokenizer.eos_token = eos_token
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{path_or_name}: the tokenizer has no end-of-sequence token (eos_token), and examples need one; "
            "`megaokd preprocess --eos-token TOKEN` names it"
        )
    return tokenizer


def _load(path_or_name: str | Path) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(path_or_name)
    tokenizer: PreTrainedTokenizerBase
    if path.is_file() and path.suffix == ".model":
        return from_sentencepiece(path)
    if path.is_file() and not (path.parent / "tokenizer_config.json").is_file():
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        return tokenizer
    tokenizer = AutoTokenizer.from_pretrained(str(path.parent if path.is_file() else path_or_name))
    return tokenizer


def _check_conversion(tokenizer: "PreTrainedTokenizerBase", model: Path) -> None:
    """Refuse a sentencepiece model that gives other ids once it is a Hugging Face tokenizer."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    texts = [*_PROBES, *probes(model)]
    for text, ids in zip(texts, encode_texts(tokenizer, texts), strict=True):
        expected = processor.encode(text)
        if ids != expected:
            raise UserError(
                f"{model}: transformers gives other ids than sentencepiece for {text!r} ({ids[:8]} and "
                f"{expected[:8]}); use the Hugging Face folder of this tokenizer"
            )


def save_tokenizer(tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write the tokenizer's files to `folder`, with its sentencepiece model where it was loaded with one.

    Raises:
        OSError: they cannot be written.
    """
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # `tokenizers` has no class of its own for the system's errors
        if " (os error " in str(error):
            raise OSError(str(error)) from None
        raise
    for name in _SENTENCEPIECE_FILES:
        source = Path(tokenizer.name_or_path) / name
        if source.is_file():
            shutil.copyfile(source, folder / name)


def encode_texts(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, markup: bool = False
) -> list[list[int]]:
    """Token ids of each text, without bos or eos added.

    Args:
        tokenizer: any.
        texts: any text.
        markup: the texts come from a chat template: special tokens that they spell out become those tokens.
    """
    if not texts:
        return []
    split = False if markup else bool(getattr(tokenizer, "split_special_tokens", False))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = split
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    ids: list[list[int]] = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        split_special_tokens=split,
    )["input_ids"]
    return ids


def encode_flat(
    tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], *, markup: bool
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """As `encode_texts`: the ids of all texts, one after another, and how many each has."""
    parts, counts = [np.zeros(0, dtype=np.uint32)], [np.zeros(0, dtype=np.int64)]
    for start in range(0, len(texts), _BATCH):
        ids = encode_texts(tokenizer, texts[start : start + _BATCH], markup=markup)
        counts.append(np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)))
        parts.append(np.fromiter(chain.from_iterable(ids), dtype=np.uint32, count=int(counts[-1].sum())))
    return np.concatenate(parts), np.concatenate(counts)


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
