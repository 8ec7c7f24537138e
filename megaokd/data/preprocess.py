"""Examples -> a token dataset on disk (`token_format`), written in one pass with constant memory."""

import hashlib
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from tqdm import tqdm

from megaokd.data.examples import Document, Example
from megaokd.data.token_format import INDEX_FILE, META_FILE, TOKENIZER_FOLDER, TOKENS_FILE, Meta, token_dtype
from megaokd.data.tokenizer import (
    bos_ids,
    encode_prompts,
    encode_texts,
    save_tokenizer,
    vocabulary_hash,
    vocabulary_size,
)
from megaokd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH = 1024  # examples tokenized at once

TokenizedExample = tuple[list[int], int]  # token ids, prompt length


def preprocess(
    examples: Iterable[Example | Document],
    tokenizer: "PreTrainedTokenizerBase",
    output: str | Path,
    *,
    block_length: int = 512,
    overwrite: bool = False,
    progress: bool = False,
) -> Meta:
    """Tokenize `examples` and write the dataset folder `output`, which appears only when it is complete.

    An instruction example becomes [bos] + prompt + response + [eos]; prompt and response are tokenized apart, so the
    prompt's ids are those of a generation from the prompt alone, and the boundary of the loss is exact.
    Documents become one stream of [bos] + text + [eos], cut into examples of block_length + 1 tokens that share one
    token with the next, so that every token but the first is predicted once, in block_length positions an example.

    Raises:
        UserError: `output` exists (and `overwrite` is off, or it is not a token dataset), or the examples hold nothing
            to predict.
    """
    output = Path(output)
    _check_output(output, overwrite)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        meta = _write(examples, tokenizer, partial, block_length, progress)
        _move_into_place(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return meta


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not (output / META_FILE).is_file():
        raise UserError(f"{output}: exists and is not a token dataset; choose another output folder")
    if not overwrite:
        raise UserError(f"{output}: exists already; choose another output folder or pass --overwrite")


def _move_into_place(partial: Path, output: Path) -> None:
    old = output.with_name(f".{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        output.rename(old)
    os.rename(partial, output)
    shutil.rmtree(old, ignore_errors=True)


def _write(
    examples: Iterable[Example | Document],
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    block_length: int,
    progress: bool,
) -> Meta:
    stream = iter(tqdm(examples, desc="tokenizing", unit=" examples", disable=not progress))
    first = next(stream, None)
    writer = _Writer(folder, vocabulary_size(tokenizer))
    with writer:
        if first is not None:
            for ids, prompt_length in _tokenize(chain([first], stream), tokenizer, block_length):
                writer.add(ids, prompt_length)
    if writer.num_loss_tokens == 0:
        raise UserError("nothing to learn in these examples: there is no token to predict")
    save_tokenizer(tokenizer, folder / TOKENIZER_FOLDER)
    return writer.finish("text" if isinstance(first, Document) else "instruction", vocabulary_hash(tokenizer))


class _Writer:
    """tokens.bin, written as the examples come; then index.npy and meta.json."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.num_loss_tokens = 0
        self._folder = folder
        self._vocab_size = vocab_size
        self._dtype = token_dtype(vocab_size)
        self._num_tokens = 0
        self._index = array("q")
        self._digest = hashlib.sha256()
        self._file = (folder / TOKENS_FILE).open("wb")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, ids: list[int], prompt_length: int) -> None:
        assert max(ids) < self._vocab_size
        data = np.asarray(ids, dtype=self._dtype).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._index.extend((self._num_tokens, len(ids), prompt_length))
        self._num_tokens += len(ids)
        self.num_loss_tokens += len(ids) - prompt_length

    def finish(self, kind: Literal["instruction", "text"], vocabulary: str) -> Meta:
        index = np.frombuffer(self._index, dtype=np.int64).reshape(-1, 3)
        np.save(self._folder / INDEX_FILE, index)
        self._digest.update(index.tobytes())
        self._digest.update(vocabulary.encode())
        meta = Meta(
            kind=kind,
            num_examples=len(index),
            num_tokens=self._num_tokens,
            num_loss_tokens=self.num_loss_tokens,
            vocab_size=self._vocab_size,
            vocabulary_hash=vocabulary,
            fingerprint=self._digest.hexdigest(),
        )
        meta.write(self._folder)
        return meta


def _tokenize(
    examples: Iterator[Example | Document], tokenizer: "PreTrainedTokenizerBase", block_length: int
) -> Iterator[TokenizedExample]:
    stream: list[int] = []
    while batch := list(islice(examples, _BATCH)):
        yield from _instruction(tokenizer, [item for item in batch if isinstance(item, Example)])
        stream += _document_ids(tokenizer, [item.text for item in batch if isinstance(item, Document)])
        start = 0
        while len(stream) - start > block_length:
            yield stream[start : start + block_length + 1], 1
            start += block_length
        del stream[:start]
    if len(stream) > 1:
        yield stream, 1


def _instruction(tokenizer: "PreTrainedTokenizerBase", batch: list[Example]) -> Iterator[TokenizedExample]:
    prompts = encode_prompts(tokenizer, [example.prompt for example in batch])
    responses = encode_texts(tokenizer, [example.response for example in batch])
    for prompt, response in zip(prompts, responses, strict=True):
        yield [*prompt, *response, int(tokenizer.eos_token_id)], max(len(prompt), 1)


def _document_ids(tokenizer: "PreTrainedTokenizerBase", texts: list[str]) -> list[int]:
    start = bos_ids(tokenizer)
    return [token for ids in encode_texts(tokenizer, texts) for token in (*start, *ids, int(tokenizer.eos_token_id))]
