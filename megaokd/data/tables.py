"""Rows of Parquet files and of Hugging Face datasets, in chunks that are bounded in rows and in bytes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaokd.data.chunks import CHUNK_BYTES, Columns, MalformedRecordError, Parsed, Position
from megaokd.errors import UserError

CHUNK_ROWS = 1024
_ROWS_AT_ONCE = 64  # of a Hugging Face dataset: one at a time takes five times as long, and their size is not known


@dataclass(frozen=True)
class Rows:
    """Rows of a table: a pyarrow record batch, or dictionaries."""

    source: str
    rows: Any
    first: int
    """Number of the first row, counted from 1."""
    end: Position
    size: float

    def parse(self) -> Iterator[Parsed]:
        """One record a row."""
        for number, row in enumerate(self._dictionaries(), self.first):
            yield f"{self.source}, row {number}", row

    def _dictionaries(self) -> list[dict[str, Any] | MalformedRecordError]:
        if isinstance(self.rows, list):
            return self.rows
        try:
            return list(self.rows.to_pylist())
        except ValueError:  # one of them; the others are good
            return [_dictionary(self.rows.slice(index, 1)) for index in range(len(self.rows))]


def _dictionary(row: Any) -> dict[str, Any] | MalformedRecordError:
    try:
        values: dict[str, Any] = row.to_pylist()[0]
    except ValueError as error:  # text that is not UTF-8, a time that Python cannot hold
        return MalformedRecordError(f"the row cannot be read ({error})")
    return values


def read_parquet(path: Path, start: Position, columns: Columns) -> Iterator[Rows]:
    """The rows of a Parquet file from `start` on; in memory are some MiB of each column, however large a row group is.

    Raises:
        UserError: it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        # By default, pyarrow reads the columns of a row group as a whole.
        with pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            read = columns(file.schema_arrow.names)
            row_bytes = path.stat().st_size / max(1, file.metadata.num_rows)
            end = 0
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                if end + num_rows <= start.offset:
                    end += num_rows
                    continue
                for part in _row_group(file, group, read):
                    end += len(part)
                    rows = _compact(part.slice(max(len(part) - max(end - start.offset, 0), 0)))
                    if len(rows):
                        yield Rows(str(path), rows, end - len(rows) + 1, Position(end), len(rows) * row_bytes)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None


def _row_group(file: Any, number: int, columns: Sequence[str]) -> Iterator[Any]:
    """Record batches of a row group, read as many rows at a time as have CHUNK_BYTES on average."""
    group = file.metadata.row_group(number)
    chunks = (group.column(index) for index in range(group.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
    rows = max(1, min(CHUNK_ROWS, CHUNK_BYTES * group.num_rows // max(1, size)))
    for batch in file.iter_batches(batch_size=rows, row_groups=[number], columns=columns):
        yield from _cut(batch)


def _cut(batch: Any) -> Iterator[Any]:
    """Parts of at most CHUNK_BYTES or of one row."""
    if batch.nbytes <= CHUNK_BYTES or len(batch) == 1:
        yield batch
        return
    half = len(batch) // 2
    for part in (batch.slice(0, half), batch.slice(half)):
        yield from _cut(part)


def _compact(batch: Any) -> Any:
    """A copy: a slice would take all of what it was cut from along to a worker."""
    import pyarrow

    return pyarrow.ipc.read_record_batch(batch.serialize(), batch.schema)


def read_hugging_face(source: str, start: Position, split: str, columns: Columns) -> Iterator[Rows]:
    """The rows of a Hugging Face dataset (`name`, `name:configuration`, a folder) from `start` on, streamed.

    Raises:
        UserError: there is none that can be loaded.
    """
    import datasets

    name, _, configuration = source.partition(":")
    row, rows, size = start.offset, list[dict[str, Any]](), 0
    try:
        records = datasets.load_dataset(name, configuration or None, split=split, streaming=True).skip(row)
        for batch in records.iter(batch_size=_ROWS_AT_ONCE):
            read = {key: batch[key] for key in columns(list(batch))}
            for values in zip(*read.values(), strict=True):
                rows.append(dict(zip(read, values, strict=True)))
                size += sum(map(_size, values))
                if len(rows) == CHUNK_ROWS or size >= CHUNK_BYTES:
                    first, row = row + 1, row + len(rows)
                    yield Rows(source, rows, first, Position(row), len(rows))
                    rows, size = [], 0
        if rows:
            yield Rows(source, rows, row + 1, Position(row + len(rows)), len(rows))
    except Exception as error:  # the hub, its caches and the builders raise whatever they meet
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{source}: neither a data file nor a dataset that can be loaded with split {split!r} "
            f"({type(error).__name__}: {reason})"
        ) from error


def _size(value: Any) -> int:
    """Characters of the texts in a record, 8 for anything else that is no container."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 8
