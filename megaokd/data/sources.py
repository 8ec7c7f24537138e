"""Records (dictionaries) from JSONL, Parquet and text files and from Hugging Face datasets, in chunks.

Files of lines are read here, tables in `tables`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaokd.data.chunks import CHUNK_BYTES, Chunk, Columns, MalformedRecordError, Parsed, Position
from megaokd.data.hub import may_be_hub_name
from megaokd.data.tables import read_hugging_face, read_parquet
from megaokd.errors import UserError

_FILE_ENDINGS = (".jsonl", ".parquet", ".txt", ".json", ".csv")  # a name that ends so was meant as a file


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
            ".parquet": lambda: read_parquet(path, start, columns),
            ".txt": lambda: _paragraphs(path, start, text_key),
        }
        if path.suffix not in readers:
            ending = path.suffix or "no ending"
            raise UserError(f"{path}: a data file must end in {', '.join(readers)}, found {ending!r}")
        return readers[path.suffix]()
    if path.is_dir() or (may_be_hub_name(source) and path.suffix not in _FILE_ENDINGS):
        return read_hugging_face(source, start, split, columns)
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
