"""A token dataset in the making: files that grow, and a journal of how far they are good.

A process may die at any moment. What the journal last said is on disk, whatever was written after it is cut off when
the job goes on, and the result is the same byte for byte.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from megaokd.data.token_format import INDEX_FILE, MALFORMED_FILE, TOKENS_FILE
from megaokd.errors import RunError, UserError

JOURNAL_FILE = "journal.json"
_ROWS_FILE = "index.rows"  # becomes index.npy
_FILES = (TOKENS_FILE, _ROWS_FILE, MALFORMED_FILE)


@dataclass
class Progress:
    """How far a job is; written to the journal as it stands."""

    done: float = 0.0
    """Sizes of the chunks that are done, for the progress bar."""
    source: int = 0
    """The input that is being read."""
    offset: int = 0
    """Where in it the next chunk begins: `Position`."""
    line: int = 0
    records: list[int] = field(default_factory=list)
    """Records read of each input."""
    num_tokens: int = 0
    num_examples: int = 0
    num_loss_tokens: int = 0
    num_malformed: int = 0
    carry: list[int] = field(default_factory=list)
    """Tokens of plain text that do not fill a block yet."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raises RunError for an OSError: a full disk, most often."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{folder}: the dataset cannot be written ({error.strerror or error}); make room and start the same "
            "command again"
        ) from error


class Journal:
    """The folder of an unfinished dataset; a context that locks it.

    Args:
        folder: made if it is not there.
        signature: what the result depends on; a folder of another signature is begun anew.
        dtype: of tokens.bin.

    Raises:
        UserError: the folder cannot be made, or another process is writing it.
    """

    def __init__(self, folder: Path, signature: str, dtype: np.dtype[Any]) -> None:
        self.folder = folder
        self.dtype = dtype
        self.progress = Progress()
        self.resumed = False
        self._signature = signature
        self._files: dict[str, BinaryIO] = {}

    def __enter__(self) -> "Journal":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise UserError(f"{self.folder}: this folder cannot be made or written to ({error.strerror})") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(f"{self.folder}: another process is writing this dataset") from None
        self._restore()
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # the journal vouches for what is on disk, not for what is written here
                file.close()
        if not (self.folder / JOURNAL_FILE).is_file():
            shutil.rmtree(self.folder, ignore_errors=True)  # nothing to go on from
        self._lock.close()

    def add(self, tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], prompts: npt.NDArray[np.int64]) -> None:
        """Append examples whose `tokens` stand one after another."""
        starts = self.progress.num_tokens + np.cumsum(lengths) - lengths
        self._append(starts, lengths, prompts)
        self._files[TOKENS_FILE].write(tokens.astype(self.dtype, copy=False).tobytes())
        self.progress.num_tokens += len(tokens)

    def add_blocks(self, tokens: npt.NDArray[Any], block_length: int) -> None:
        """Append a stream of text as examples of block_length + 1 tokens that share one token with the next."""
        count = max(-(-(len(tokens) - 1) // block_length), 0)
        starts = np.arange(count, dtype=np.int64) * block_length
        ends = np.minimum(starts + block_length + 1, len(tokens))
        for start, end in zip(starts, ends, strict=True):
            self._files[TOKENS_FILE].write(tokens[start:end].tobytes())
        lengths = ends - starts
        self._append(self.progress.num_tokens + np.cumsum(lengths) - lengths, lengths, np.ones_like(lengths))
        self.progress.num_tokens += int(lengths.sum())

    def _append(self, starts: Any, lengths: npt.NDArray[np.int64], prompts: npt.NDArray[np.int64]) -> None:
        self._files[_ROWS_FILE].write(np.stack((starts, lengths, prompts), axis=1).astype(np.int64).tobytes())
        self.progress.num_examples += len(lengths)
        self.progress.num_loss_tokens += int((lengths - prompts).sum())

    def add_malformed(self, reasons: Sequence[str]) -> None:
        """Append to the list of malformed records."""
        lines = "".join(f"{reason}\n" for reason in reasons)
        self._files[MALFORMED_FILE].write(lines.encode(errors="backslashreplace"))  # a key may be no Unicode either
        self.progress.num_malformed += len(reasons)

    def first_malformed(self) -> str:
        """The first of that list, of which there must be one."""
        self._files[MALFORMED_FILE].flush()
        with (self.folder / MALFORMED_FILE).open(encoding="utf-8") as file:
            return file.readline().rstrip("\n")

    def commit(self) -> None:
        """Write everything to disk, then the journal that vouches for it."""
        sizes = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            sizes[name] = file.tell()
        record = {"signature": self._signature, "sizes": sizes, "progress": dataclasses.asdict(self.progress)}
        path = self.folder / JOURNAL_FILE
        new = path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(json.dumps(record).encode())
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)

    def finish(self, vocabulary: str) -> str:
        """Turn the rows into index.npy, drop what only the job needed; returns the dataset's fingerprint."""
        for file in self._files.values():
            file.close()
        rows = np.memmap(self.folder / _ROWS_FILE, dtype=np.int64, mode="r").reshape(-1, 3)
        np.save(self.folder / INDEX_FILE, rows)
        digest = hashlib.sha256()
        for name in (TOKENS_FILE, _ROWS_FILE):
            with (self.folder / name).open("rb") as file:
                while data := file.read(1 << 22):
                    digest.update(data)
        digest.update(vocabulary.encode())
        (self.folder / _ROWS_FILE).unlink()
        (self.folder / JOURNAL_FILE).unlink(missing_ok=True)
        (self.folder / "lock").unlink()
        if not self.progress.num_malformed:
            (self.folder / MALFORMED_FILE).unlink()
        return digest.hexdigest()

    def _restore(self) -> None:
        record = self._read()
        if record is None:
            for path in self.folder.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            self.resumed = True
            self.progress = Progress(**record["progress"])
        for name in _FILES:
            file = (self.folder / name).open("ab")
            file.truncate(record["sizes"][name] if record is not None else 0)
            file.seek(0, os.SEEK_END)
            self._files[name] = file

    def _read(self) -> dict[str, Any] | None:
        """The journal, if it belongs to this job and the files hold at least what it says."""
        try:
            record: dict[str, Any] = json.loads((self.folder / JOURNAL_FILE).read_text(encoding="utf-8"))
            sizes = {name: (self.folder / name).stat().st_size for name in _FILES}
            good = record["signature"] == self._signature and all(
                sizes[name] >= record["sizes"][name] for name in _FILES
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return record if good else None
