"""The files of a trunk cache: one row of fp32 or bf16 numbers a position, example after example.

    manifest.json   the key: all that the numbers depend on; sizes; a checksum of itself. Written last.
    index.bin       uint64 [examples]: 0 where there is none yet, else 2^32 + CRC-32 of the example's bytes
    hidden.bin      [positions of all examples, D]; its place follows from the examples' lengths

A plain file, since examples are written in the order of training and read in any other: one is one contiguous read, and
one that is not there yet takes no room (the file is sparse). safetensors and Arrow are written once, from front to
back. An example's checksum is written after its numbers, eight aligned bytes at once; so a process may die at any
moment, and what it left is an example that is whole, absent, or known by its checksum to be neither.
"""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from megaokd.data.order import Ids
from megaokd.files import json_sha256, write_json
from megaokd.precision import DTYPES

FORMAT_VERSION = 1
MANIFEST, INDEX, HIDDEN = "manifest.json", "index.bin", "hidden.bin"
_PRESENT = 1 << 32
_ITEM = 8


class TrunkStore:
    """The cache of one data set in `folder`, which `create` made; open until `close`.

    Args:
        folder: where the three files are.
        lengths: positions of each example, int64 [examples].
        width: D, the teacher's hidden size.
        dtype: of the numbers.
    """

    def __init__(self, folder: Path, lengths: Ids, width: int, dtype: Literal["float32", "bfloat16"]) -> None:
        self.folder = folder
        self.lengths = lengths
        self.width = width
        self.dtype = DTYPES[dtype]
        self.row_bytes = width * self.dtype.itemsize
        """Bytes of one position."""
        self._starts = np.concatenate([[0], np.cumsum(lengths)])
        self._hidden = self._index = -1

    def is_whole(self, key: Mapping[str, Any]) -> bool:
        """Whether the files are there, in their full sizes, and were made for this key."""
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            sizes = {name: (self.folder / name).stat().st_size for name in (INDEX, HIDDEN)}
        except (OSError, ValueError):
            return False
        return bool(manifest == self._manifest(key)) and sizes == self._sizes()

    def create(self, key: Mapping[str, Any]) -> None:
        """Make files without any example, in place of what may be there; a process that reads those goes on with them.

        Raises:
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for name, size in self._sizes().items():
            partial = self.folder / f"{name}.new"
            with partial.open("wb") as file:
                file.truncate(size)
            partial.replace(self.folder / name)
        write_json(self.folder / MANIFEST, self._manifest(key))

    def open(self, *, write: bool = False) -> "TrunkStore":
        """Open the files; returns itself."""
        flags = os.O_RDWR if write else os.O_RDONLY
        self.close()
        self._hidden = os.open(self.folder / HIDDEN, flags)
        self._index = os.open(self.folder / INDEX, flags)
        return self

    def close(self) -> None:
        """Close the files."""
        for descriptor in (self._hidden, self._index):
            if descriptor >= 0:
                os.close(descriptor)
        self._hidden = self._index = -1

    def sync(self) -> None:
        """Make all that was written durable."""
        os.fsync(self._hidden)
        os.fsync(self._index)

    def entries(self) -> npt.NDArray[np.uint64]:
        """index.bin as it is now."""
        return np.frombuffer(os.pread(self._index, _ITEM * len(self.lengths), 0), dtype="<u8")

    def write(self, example: int, hidden: torch.Tensor) -> None:
        """Write an example, [positions, D] of any float dtype.

        Raises:
            OSError: no room, for instance.
        """
        assert hidden.shape == (self.lengths[example], self.width)
        data = hidden.to("cpu", self.dtype).contiguous().view(torch.uint8).numpy().data.cast("B")
        done = 0
        while done < len(data):
            done += os.pwrite(self._hidden, data[done:], self._starts[example] * self.row_bytes + done)
        self._mark(example, _PRESENT + zlib.crc32(data))

    def forget(self, examples: Ids) -> None:
        """Mark examples as absent."""
        for example in examples.tolist():
            self._mark(example, 0)

    def read(self, example: int, entry: int) -> torch.Tensor | None:
        """An example, [positions, D]; None where it is absent or not what `entry`, of `entries`, says was written."""
        data = bytearray(int(self.lengths[example]) * self.row_bytes)
        done, start = 0, self._starts[example] * self.row_bytes
        while done < len(data):
            found = os.preadv(self._hidden, [memoryview(data)[done:]], start + done)  # 2 GB a call at most
            if found == 0:
                break
            done += found
        if done != len(data) or entry != _PRESENT + zlib.crc32(data):
            return None
        return torch.frombuffer(data, dtype=self.dtype).view(-1, self.width)

    def _mark(self, example: int, entry: int) -> None:
        os.pwrite(self._index, entry.to_bytes(_ITEM, "little"), _ITEM * example)

    def _sizes(self) -> dict[str, int]:
        return {INDEX: _ITEM * len(self.lengths), HIDDEN: int(self._starts[-1]) * self.row_bytes}

    def _manifest(self, key: Mapping[str, Any]) -> dict[str, Any]:
        values = {"format_version": FORMAT_VERSION, "key": dict(key), "bytes": self._sizes()}
        return {**values, "sha256": json_sha256(values)}
