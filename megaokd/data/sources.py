"""Records (dictionaries) from JSONL, Parquet and text files and from Hugging Face datasets, in chunks.

A chunk is cut by whoever reads the file and parsed by whoever needs the records, in another process perhaps. It knows
where reading goes on after it, so that a job that was killed can continue there.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megaokd.data.hub import may_be_hub_name
from megaokd.errors import UserError

CHUNK_BYTES = 1 << 19
CHUNK_ROWS = 1024

_FILE_ENDINGS = (".jsonl", ".parquet", ".txt", ".json", ".csv")  # a name that ends so was meant as a file


class MalformedRecordError(UserError):
    """One record that is not what it should be; the ones after it can still be read."""


Columns = Callable[[Sequence[str]], list[str]]
"""The names of a table's columns -> those that are read."""
Parsed = tuple[str, dict[str, Any] | MalformedRecordError]
"""Where a record stands (`file:line` or `file, row N`), and its fields."""


@dataclass(frozen=True)
class Position:
    """Where a chunk begins in its source."""

    offset: int = 0
    """Bytes of a text file, rows of anything else."""
    line: int = 0
    """Lines of a text file in front of it."""


class Chunk(Protocol):
    """Records that stand together."""

    @property
    def end(self) -> Position:
        """Where the next chunk begins."""
        ...

    @property
    def size(self) -> float:
        """Its part of `source_size`; 1 a record where that is not known."""
        ...

    def parse(self) -> Iterator[Parsed]:
        """The records, in order."""
        ...


def read_chunks(source: str, start: Position, *, split: str, columns: Columns, text_key: str) -> Iterator[Chunk]:
    """Everything in a file (.jsonl, .parquet, .txt) or a Hugging Face dataset from `start` on.

    Args:
        source: a file, a Hugging Face name (`name` or `name:configuration`) or folder.
        start: the beginning, or the end of a chunk that was read before.
        split: the part of a Hugging Face dataset.
        columns: which of a table's; JSONL records are parsed whole.
        text_key: the one field of a .txt file's records; a record is what stands between blank lines.

    Raises:
        UserError: a missing or unreadable file, a kind of file that is not known.
    """
    path = Path(source)
    if path.is_file():
        readers: dict[str, Callable[[], Iterator[Chunk]]] = {
            ".jsonl": lambda: _jsonl(path, start),
            ".parquet": lambda: _parquet(path, start, columns),
            ".txt": lambda: _paragraphs(path, start, text_key),
        }
        if path.suffix not in readers:
            ending = path.suffix or "no ending"
            raise UserError(f"{path}: a data file must end in {', '.join(readers)}, found {ending!r}")
        return readers[path.suffix]()
    if path.is_dir() or (may_be_hub_name(source) and path.suffix not in _FILE_ENDINGS):
        return _hugging_face(source, start, split, columns)
    raise UserError(f"{source}: there is no such file or folder")


def source_size(source: str) -> int | None:
    """Bytes of a file; None for a Hugging Face dataset."""
    path = Path(source)
    return path.stat().st_size if path.is_file() else None


@dataclass(frozen=True)
class _Lines:
    """Lines of a text file, as they stand there."""

    path: str
    lines: list[bytes]
    first: int
    """Number of the first line, counted from 1."""
    end: Position

    @property
    def size(self) -> float:
        """Bytes."""
        return sum(map(len, self.lines))


class JsonLines(_Lines):
    """Lines of a JSONL file."""

    def parse(self) -> Iterator[Parsed]:
        """One record a line; blank lines are none."""
        for number, line in enumerate(self.lines, self.first):
            if line.strip():
                where = f"{self.path}:{number}"
                try:
                    yield where, _json_object(_decode(line, number))
                except MalformedRecordError as error:
                    yield where, error


@dataclass(frozen=True)
class Paragraphs(_Lines):
    """Lines of a text file, whole paragraphs."""

    text_key: str

    def parse(self) -> Iterator[Parsed]:
        """One record for what stands between blank lines."""
        paragraph: list[bytes] = []
        for number, line in enumerate([*self.lines, b""], self.first):
            if line.strip(b"\xef\xbb\xbf \t\r\n") if number == 1 else line.strip():
                paragraph.append(line)
            elif paragraph:
                yield self._record(paragraph, number - len(paragraph))
                paragraph = []

    def _record(self, paragraph: list[bytes], first: int) -> Parsed:
        where = f"{self.path}:{first}"
        try:
            lines = [_decode(line, number) for number, line in enumerate(paragraph, first)]
        except MalformedRecordError as error:
            return where, error
        return where, {self.text_key: "".join(lines).rstrip("\r\n")}


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


def _decode(line: bytes, number: int) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedRecordError(f"not UTF-8 text ({error.reason}, byte {error.start} of line {number})") from None


def _json_object(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise MalformedRecordError(
            f"not valid JSON ({error.msg}, column {error.colno}); each line must be one object"
        ) from None
    except RecursionError:
        raise MalformedRecordError("not valid JSON (nested too deeply); each line must be one object") from None
    except ValueError as error:  # an integer longer than Python reads
        raise MalformedRecordError(f"a number cannot be read ({str(error).partition(';')[0]})") from None
    if not isinstance(record, dict):
        raise MalformedRecordError(f"each line must be one JSON object, found {type(record).__name__}")
    return record


def _jsonl(path: Path, start: Position) -> Iterator[JsonLines]:
    for lines, first, end in _line_blocks(path, start, until_blank=False):
        yield JsonLines(str(path), lines, first, end)


def _paragraphs(path: Path, start: Position, text_key: str) -> Iterator[Paragraphs]:
    for lines, first, end in _line_blocks(path, start, until_blank=True):
        yield Paragraphs(str(path), lines, first, end, text_key)


def _line_blocks(path: Path, start: Position, *, until_blank: bool) -> Iterator[tuple[list[bytes], int, Position]]:
    offset, number = start.offset, start.line
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while lines := file.readlines(CHUNK_BYTES):
                while until_blank and lines[-1].strip() and (line := file.readline()):
                    lines.append(line)
                first, number = number + 1, number + len(lines)
                offset += sum(map(len, lines))
                yield lines, first, Position(offset, number)
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror})") from None


def _parquet(path: Path, start: Position, columns: Columns) -> Iterator[Rows]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            read = columns(file.schema_arrow.names)
            row_bytes = path.stat().st_size / max(1, file.metadata.num_rows)
            row = 0
            for group in range(file.num_row_groups):
                end = row + file.metadata.row_group(group).num_rows
                if end <= start.offset:
                    row = end
                    continue
                for batch in file.iter_batches(batch_size=CHUNK_ROWS, row_groups=[group], columns=read):
                    fresh = batch.slice(min(max(start.offset - row, 0), len(batch)))
                    first = row + len(batch) - len(fresh) + 1
                    row += len(batch)
                    if len(fresh):
                        yield Rows(str(path), fresh, first, Position(row), len(fresh) * row_bytes)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None


def _hugging_face(source: str, start: Position, split: str, columns: Columns) -> Iterator[Rows]:
    import datasets

    name, _, configuration = source.partition(":")
    row = start.offset
    try:
        records = datasets.load_dataset(name, configuration or None, split=split, streaming=True)
        for batch in records.skip(row).iter(batch_size=CHUNK_ROWS):
            read = {key: batch[key] for key in columns(list(batch))}
            rows = [dict(zip(read, values, strict=True)) for values in zip(*read.values(), strict=True)]
            first, row = row + 1, row + len(rows)
            yield Rows(source, rows, first, Position(row), len(rows))
    except Exception as error:  # the hub, its caches and the builders raise whatever they meet
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{source}: neither a data file nor a dataset that can be loaded with split {split!r} "
            f"({type(error).__name__}: {reason})"
        ) from error
