"""Training a sentencepiece BPE tokenizer and writing the same tokenizer in the form that transformers reads.

The text is taken as it is: no normalisation, no space added in front, so that encoding a prompt and a response
separately and decoding the joined ids gives back the joined text. What is outside the vocabulary (newlines, tabs, rare
characters) falls back to bytes, so every text can be encoded.
"""

import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import sentencepiece

from megaokd.data.sentencepiece_model import SPACE, merges
from megaokd.errors import UserError

SPECIAL_TOKENS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
"""In the order of their ids: 0, 1, 2, 3."""

MAX_LINES = 1_000_000
"""Training looks at this many lines, the first ones; more changes little and costs memory."""

_MODEL_FILE = "tokenizer.model"


def train_tokenizer(texts: Iterable[str], folder: str | Path, *, vocab_size: int) -> None:
    """Train on `texts` and write `folder`: tokenizer.model, tokenizer.json, tokenizer_config.json.

    The result depends on the texts and `vocab_size` alone.

    Raises:
        UserError: no text at all, or a vocabulary size that these texts cannot give.
    """
    model = _train_sentencepiece(texts, vocab_size)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MODEL_FILE).write_bytes(model)
    _write_transformers_files(model, folder)


def _train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
    lines = islice(_lines(texts), MAX_LINES)
    first = next(lines, None)
    if first is None:
        raise UserError("there is no text to train a tokenizer on: every example is empty")
    output = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_prepend(first, lines),
            model_writer=output,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9999,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=1 << 16,
            num_threads=1,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=3,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"a vocabulary of {vocab_size} tokens cannot be trained on these texts: {reason}") from None
    return output.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    # A newline or a tab inside a sentence would be learned as a piece or refused; alone they are byte tokens.
    for text in texts:
        for line in text.replace("\t", "\n").split("\n"):
            if line:
                yield line


def _prepend(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _write_transformers_files(model: bytes, folder: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    _build_fast_tokenizer(processor).save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        # transformers 4 and 5 both read tokenizer.json as it stands under this class name.
        "tokenizer_class": "PreTrainedTokenizerFast",
        **SPECIAL_TOKENS,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        # "</s>" in a text is four characters, as it is for sentencepiece, and never the end of the sequence.
        "split_special_tokens": True,
        "model_max_length": 1 << 30,
        "padding_side": "right",
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _build_fast_tokenizer(processor: sentencepiece.SentencePieceProcessor) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = {processor.id_to_piece(index): index for index in range(processor.get_piece_size())}
    assert list(vocabulary)[: len(SPECIAL_TOKENS)] == list(SPECIAL_TOKENS.values())
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges(processor),
            unk_token=SPECIAL_TOKENS["unk_token"],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])
    bos = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS.values()])
    return tokenizer
