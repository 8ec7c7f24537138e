"""Megatron's indexed datasets (.bin and .idx), read in place through memory maps.

The .idx file: magic, version 1 (uint64), a code for the dtype (uint8), the numbers of sequences and of document
boundaries (uint64 each), then the sequences' lengths (int32) and first bytes in the .bin file (int64), and the
documents' first sequences with their end (int64). A document's tokens stand together in the .bin file.
"""

import hashlib
import struct
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megaokd.data.tokenizer import load_tokenizer, vocabulary_hash, vocabulary_size
from megaokd.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<QBQQ")
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_SAMPLE = 1 << 20  # bytes of each end of the .bin file that the fingerprint looks at


def is_megatron(prefix: str) -> bool:
    """Whether one of the two files is there."""
    return any(Path(f"{prefix}{ending}").is_file() for ending in (".bin", ".idx"))


class MegatronDataset:
    """The documents of PREFIX.bin and PREFIX.idx, all of whose tokens but the first are learned.

    A document of more than block_length + 1 tokens is cut into examples of that length which share one token with the
    next; what is left at its end is an example too. An example never reaches over the end of a document.

    Args:
        prefix: the files' common name.
        tokenizer: its folder; the files do not carry one.
        block_length: positions of an example.

    Raises:
        UserError: files that are missing, truncated or no Megatron dataset; no tokenizer; no document of two tokens.
    """

    def __init__(self, prefix: str, tokenizer: str | Path, *, block_length: int) -> None:
        self.folder = Path(prefix)
        self.tokenizer_path = Path(tokenizer)
        loaded = load_tokenizer(tokenizer)
        self.vocab_size = vocabulary_size(loaded)
        self.vocabulary_hash = vocabulary_hash(loaded)
        self._index_path, self._bin_path = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
        starts, lengths, dtype = _read_index(self._index_path)
        self._tokens = _open_tokens(self._bin_path, dtype, int((starts + lengths).max(initial=0)))
        self._starts, self.lengths = _cut(starts, lengths, block_length)
        if not len(self.lengths):
            raise UserError(f"{self._index_path}: no document has two tokens or more; there is nothing to learn")
        self.prompt_lengths = np.ones_like(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        """The token ids of one example, int64 [length].

        Raises:
            UserError: an id that the tokenizer does not have.
        """
        start = self._starts[index]
        ids = self._tokens[start : start + self.lengths[index]].astype(np.int64)
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            raise UserError(
                f"{self._bin_path}: token {int(ids.max() if ids.min() >= 0 else ids.min())} near position {int(start)} "
                f"is not in the vocabulary of {self.tokenizer_path} ({self.vocab_size} tokens); data.tokenizer must be "
                "the tokenizer that this dataset was made with"
            )
        return ids

    @cached_property
    def fingerprint(self) -> str:
        """Of the .idx file, the size and both ends of the .bin file, the vocabulary and the cuts."""
        digest = hashlib.sha256(self._index_path.read_bytes())
        data = self._tokens.view(np.uint8)
        digest.update(f"{len(data)} {self.vocabulary_hash} {len(self)}".encode())
        digest.update(data[:_SAMPLE].tobytes())
        digest.update(data[-_SAMPLE:].tobytes())
        return digest.hexdigest()


def _read_index(path: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], np.dtype[Any]]:
    """(first token, number of tokens) of each document, and the dtype of the .bin file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            magic, header = file.read(len(_MAGIC)), file.read(_HEADER.size)
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror})") from None
    if magic != _MAGIC or len(header) != _HEADER.size:
        raise UserError(f"{path}: not the index of a Megatron dataset")
    version, code, sequences, boundaries = _HEADER.unpack(header)
    if version != 1 or code not in _DTYPES:
        raise UserError(
            f"{path}: version {version} with dtype code {code} is not supported; version 1 with integers is"
        )
    begin = len(_MAGIC) + _HEADER.size
    if size < begin + 12 * sequences + 8 * boundaries:
        raise UserError(f"{path}: truncated; {sequences} sequences and {boundaries} boundaries need more bytes")
    dtype = np.dtype(_DTYPES[code])
    lengths = np.fromfile(path, np.int32, sequences, offset=begin).astype(np.int64)
    pointers = np.fromfile(path, np.int64, sequences, offset=begin + 4 * sequences)
    documents = np.fromfile(path, np.int64, boundaries, offset=begin + 12 * sequences)
    ends = np.concatenate(([0], np.cumsum(lengths)))
    good = (
        boundaries > 0
        and documents[0] == 0
        and documents[-1] == sequences
        and bool((np.diff(documents) >= 0).all())
        and bool((lengths >= 0).all())
        and bool((pointers == ends[:-1] * dtype.itemsize).all())
    )
    if not good:
        raise UserError(f"{path}: damaged; its lengths, places and document boundaries contradict one another")
    return ends[documents[:-1]], ends[documents[1:]] - ends[documents[:-1]], dtype


def _open_tokens(path: Path, dtype: np.dtype[Any], tokens: int) -> npt.NDArray[Any]:
    found = path.stat().st_size if path.is_file() else 0
    if found < tokens * dtype.itemsize or not tokens:
        raise UserError(f"{path}: {found} bytes, the index speaks of {tokens * dtype.itemsize}: missing or truncated")
    return np.memmap(path, dtype=dtype, mode="r", shape=(tokens,))


def _cut(
    starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], block_length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First token and number of tokens of every example."""
    counts = np.maximum(-(-(lengths - 1) // block_length), 0)
    document = np.repeat(np.arange(len(lengths)), counts)
    block = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = block * block_length
    return starts[document] + offsets, np.minimum(lengths[document] - offsets, block_length + 1)
