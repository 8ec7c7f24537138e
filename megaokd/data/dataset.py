"""A token dataset read through memory maps: opening it costs nothing, and only the examples asked for are read."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megaokd.data.token_format import INDEX_FILE, TOKENIZER_FOLDER, TOKENS_FILE, Meta, read_meta, token_dtype
from megaokd.errors import UserError


class TokenDataset:
    """The examples of a folder that `megaokd preprocess` wrote.

    Attributes:
        meta: counts, vocabulary size and hash, fingerprint.
        lengths: tokens of each example, int64 [examples].
        prompt_lengths: leading tokens of each example whose prediction carries no loss (>= 1), int64 [examples].

    Raises:
        UserError: not a token dataset, another format version, or a file that is missing, truncated or damaged.
    """

    meta: Meta
    lengths: npt.NDArray[np.int64]
    prompt_lengths: npt.NDArray[np.int64]

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.meta = read_meta(self.folder)
        # Views, so that the processes of a machine share the pages of one index.
        self._starts, self.lengths, self.prompt_lengths = np.asarray(_open_index(self.folder, self.meta)).T
        self._tokens = _open_tokens(self.folder, self.meta)
        if not self.tokenizer_path.is_dir():
            raise UserError(f"{self.tokenizer_path}: the tokenizer is missing; run `megaokd preprocess` again")

    def __len__(self) -> int:
        return self.meta.num_examples

    def __getitem__(self, index: int) -> npt.NDArray[np.int64]:
        """The token ids of one example, int64 [length]."""
        start = self._starts[index]
        return self._tokens[start : start + self.lengths[index]].astype(np.int64)

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id of the tokenizer."""
        return self.meta.vocab_size

    @property
    def vocabulary_hash(self) -> str:
        """See `megaokd.data.tokenizer.vocabulary_hash`."""
        return self.meta.vocabulary_hash

    @property
    def fingerprint(self) -> str:
        """Changes with any token, any boundary and the vocabulary; equal for equal content wherever the folder lies."""
        return self.meta.fingerprint

    @property
    def tokenizer_path(self) -> Path:
        """A folder that `transformers.AutoTokenizer` loads."""
        return self.folder / TOKENIZER_FOLDER


def _open_index(folder: Path, meta: Meta) -> npt.NDArray[np.int64]:
    path = folder / INDEX_FILE
    try:
        index: npt.NDArray[np.int64] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: missing or damaged ({error}); run `megaokd preprocess` again") from None
    if index.shape != (meta.num_examples, 3) or index.dtype != np.int64:
        raise UserError(
            f"{path}: holds {index.dtype} {list(index.shape)}, expected int64 [{meta.num_examples}, 3]; "
            "run `megaokd preprocess` again"
        )
    return index


def _open_tokens(folder: Path, meta: Meta) -> npt.NDArray[Any]:
    path = folder / TOKENS_FILE
    dtype = token_dtype(meta.vocab_size)
    expected = meta.num_tokens * dtype.itemsize
    found = path.stat().st_size if path.is_file() else 0
    if found != expected:
        raise UserError(
            f"{path}: {found} bytes, expected {expected}: truncated or damaged; run `megaokd preprocess` again"
        )
    return np.memmap(path, dtype=dtype, mode="r")
