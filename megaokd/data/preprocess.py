"""Files of examples -> a token dataset on disk (`token_format`), in parallel, in one pass, with constant memory.

The result depends on the inputs and the options alone: not on the number of workers, nor on how often the job was
killed and started again.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from megaokd.data.chunks import Chunk, Position
from megaokd.data.examples import Keys, Kind, first_kind
from megaokd.data.journal import Journal, writing
from megaokd.data.progress_bar import ProgressBar
from megaokd.data.sources import read_chunks, source_size
from megaokd.data.token_format import FORMAT_VERSION, META_FILE, TOKENIZER_FOLDER, Meta, token_dtype
from megaokd.data.tokenization import ChunkTokenizer, TokenizedChunk, TokenizerOptions, load_template_tokenizer
from megaokd.data.tokenizer import save_tokenizer, vocabulary_hash, vocabulary_size
from megaokd.data.workers import OrderedPool, available_cores
from megaokd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OnError = Literal["stop", "skip"]


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """Everything but the inputs, the tokenizer and the output."""

    split: str = "train"
    keys: Keys = field(default_factory=Keys)
    eos_token: str | None = None
    chat_template: str | None = None
    block_length: int = 512
    """Positions of an example of plain text."""
    on_error: OnError = "stop"
    """What a malformed record does: end the job, or be left out and listed."""
    workers: int = field(default_factory=available_cores)
    overwrite: bool = False
    progress: bool = False
    commit_seconds: float = 10.0
    """At most so much work is done again after a kill."""


@dataclass(frozen=True)
class Preprocessed:
    """What was written, and what had to be left out."""

    meta: Meta
    num_malformed: int
    resumed: bool


def preprocess(
    inputs: Sequence[str], tokenizer: str, output: str | Path, options: PreprocessOptions | None = None
) -> Preprocessed:
    """Tokenize the inputs (see `read_examples`) and write the folder `output`, which appears when it is complete.

    What becomes of an example is said at `ChunkTokenizer`. Documents become one stream, cut into examples of
    block_length + 1 tokens that share one token with the next, so that every token but the first is predicted once.

    Raises:
        UserError: `output` exists (and `overwrite` is off, or it is not a token dataset), an input cannot be read, a
            record is malformed (with `on_error` skip: more than half of them), or there is nothing to predict.
        RunError: the output cannot be written.
    """
    options = options or PreprocessOptions()
    output = Path(output)
    _check_output(output, options.overwrite)
    kind = first_kind(inputs, split=options.split, keys=options.keys, skip_malformed=options.on_error == "skip")
    how = TokenizerOptions(
        tokenizer=tokenizer,
        eos_token=options.eos_token,
        chat_template=options.chat_template,
        keys=options.keys,
        kind=kind,
    )
    loaded = load_template_tokenizer(how)
    partial = output.with_name(f".{output.name}.partial")
    dtype = token_dtype(vocabulary_size(loaded))
    with Journal(partial, _signature(inputs, loaded, how, options), dtype) as journal:
        _Job(inputs, how, options, journal).run()
        with writing(partial):
            done = Preprocessed(_finish(journal, loaded, kind), journal.progress.num_malformed, journal.resumed)
            _move_into_place(partial, output)
    return done


@dataclass(frozen=True)
class _Mark:
    """Where the job is once a chunk is done."""

    source: int
    end: Position
    size: float


class _Job:
    """The loop: chunks out to the workers, tokens back in order, the journal now and then."""

    def __init__(
        self, inputs: Sequence[str], how: TokenizerOptions, options: PreprocessOptions, journal: Journal
    ) -> None:
        self.inputs = inputs
        self.how = how
        self.options = options
        self.journal = journal
        journal.progress.records = journal.progress.records or [0] * len(inputs)
        self._committed_at = time.monotonic()

    def run(self) -> None:
        pool: OrderedPool[_Mark, Chunk, TokenizedChunk] = OrderedPool(ChunkTokenizer, self.how, self.options.workers)
        progress = self.journal.progress
        if progress.num_malformed and self.options.on_error == "stop":  # left out by a command with skip, then killed
            raise _stopped_at(self.journal.first_malformed())
        sizes = [source_size(source) for source in self.inputs]
        with ProgressBar(sizes, progress, shown=self.options.progress) as bar:
            for mark, tokenized in pool.map(self._chunks()):
                with writing(self.journal.folder):
                    self._take(mark, tokenized)
                bar.show(progress)
        with writing(self.journal.folder):
            if len(progress.carry) > 1:
                self.journal.add_blocks(self._stream(np.zeros(0, dtype=np.int64)), self.options.block_length)
            progress.carry = []
            self._check()
            self.journal.commit()

    def _check(self) -> None:
        """Raises UserError for a result that nobody wants."""
        progress, records = self.journal.progress, sum(self.journal.progress.records)
        for source, number in zip(self.inputs, progress.records, strict=True):
            if not number:
                raise UserError(f"{source}: the dataset is empty")
        if 2 * progress.num_malformed > records:
            raise UserError(
                f"{progress.num_malformed} of {records} records are malformed, and --on-error skip leaves out half of "
                f"them at most; the first is {self.journal.first_malformed()}"
            )
        if progress.num_loss_tokens == 0:
            raise UserError("nothing to learn in these examples: there is no token to predict")

    def _chunks(self) -> Iterator[tuple[_Mark, Chunk]]:
        progress = self.journal.progress
        start = Position(progress.offset, progress.line)
        keys, split = self.options.keys, self.options.split
        for number in range(progress.source, len(self.inputs)):
            source = self.inputs[number]
            for chunk in read_chunks(source, start, split=split, columns=keys.columns, text_key=keys.text):
                yield _Mark(number, chunk.end, chunk.size), chunk
            start = Position()

    def _take(self, mark: _Mark, tokenized: TokenizedChunk) -> None:
        progress = self.journal.progress
        if tokenized.malformed and self.options.on_error == "stop":
            raise _stopped_at(tokenized.malformed[0])
        self.journal.add_malformed(tokenized.malformed)
        if self.how.kind == "text":
            self._add_text(tokenized)
        else:
            self.journal.add(tokenized.tokens, tokenized.lengths, tokenized.prompt_lengths)
        progress.records[mark.source] += tokenized.records
        progress.source, progress.offset, progress.line = mark.source, mark.end.offset, mark.end.line
        progress.done += mark.size
        if time.monotonic() - self._committed_at >= self.options.commit_seconds:
            self.journal.commit()
            self._committed_at = time.monotonic()

    def _add_text(self, tokenized: TokenizedChunk) -> None:
        length = self.options.block_length
        stream = self._stream(tokenized.tokens)
        whole = max(len(stream) - 1, 0) // length * length
        self.journal.add_blocks(stream[: whole + 1], length)
        self.journal.progress.carry = [int(token) for token in stream[whole:]]

    def _stream(self, tokens: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Text that is left from the chunk before, and `tokens`, in the dtype of tokens.bin."""
        return np.concatenate((np.asarray(self.journal.progress.carry), tokens)).astype(self.journal.dtype)


def _stopped_at(malformed: str) -> UserError:
    return UserError(f"{malformed} (--on-error skip leaves such records out and lists them)")


def _finish(journal: Journal, tokenizer: "PreTrainedTokenizerBase", kind: Kind) -> Meta:
    save_tokenizer(tokenizer, journal.folder / TOKENIZER_FOLDER)
    vocabulary = vocabulary_hash(tokenizer)
    progress = journal.progress
    meta = Meta(
        kind=kind,
        num_examples=progress.num_examples,
        num_tokens=progress.num_tokens,
        num_loss_tokens=progress.num_loss_tokens,
        vocab_size=vocabulary_size(tokenizer),
        vocabulary_hash=vocabulary,
        fingerprint=journal.finish(vocabulary),
    )
    meta.write(journal.folder)
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


def _signature(
    inputs: Sequence[str], tokenizer: "PreTrainedTokenizerBase", how: TokenizerOptions, options: PreprocessOptions
) -> str:
    """Changes with whatever the tokens depend on; a file's content is taken to follow its size and time of change."""
    files = [file for source in inputs for path in [Path(source)] for file in (sorted(path.rglob("*")) or [path])]
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = (
        FORMAT_VERSION,
        list(inputs),
        stamps,
        options.split,
        options.block_length,
        dataclasses.asdict(how),
        vocabulary_hash(tokenizer),
        backend.to_str() if backend is not None else None,
        tokenizer.chat_template,
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
