"""Records (dictionaries) from JSONL, Parquet and text files and from Hugging Face datasets, one at a time.

Each record comes with the place where it stands, as `file:line` or `file, row N`, for error messages.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megaokd.data.hub import may_be_hub_name
from megaokd.errors import UserError

_FILE_ENDINGS = (".jsonl", ".parquet", ".txt", ".json", ".csv")  # a name that ends so was meant as a file

Record = tuple[str, dict[str, Any]]  # where it stands, its fields


def read_records(source: str, *, split: str, text_key: str) -> Iterator[Record]:
    """Every record of a file (.jsonl, .parquet, .txt), or of a Hugging Face dataset name or folder.

    `split` names the part of a Hugging Face dataset. A .txt file gives records with the one key `text_key`: what stands
    between blank lines.

    Raises:
        UserError: a missing or unreadable file, a kind of file that is not known, a line that is not what it should be.
    """
    path = Path(source)
    if path.is_file():
        return _file_reader(path, text_key)(path)
    if path.is_dir() or (may_be_hub_name(source) and path.suffix not in _FILE_ENDINGS):
        return _hugging_face(source, split)
    raise UserError(f"{source}: there is no such file or folder")


def _file_reader(path: Path, text_key: str) -> Callable[[Path], Iterator[Record]]:
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _jsonl,
        ".parquet": _parquet,
        ".txt": lambda file: _paragraphs(file, text_key),
    }
    if path.suffix not in readers:
        raise UserError(f"{path}: a data file must end in {', '.join(readers)}, found {path.suffix or 'no ending'!r}")
    return readers[path.suffix]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise UserError(f"{path}: the file cannot be read ({error.strerror})") from None


def _jsonl(path: Path) -> Iterator[Record]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}:{number}: not valid JSON ({error.msg}, column {error.colno}); each line must be one object"
            ) from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number}: each line must be one JSON object, found {type(record).__name__}")
        yield f"{path}:{number}", record


def _paragraphs(path: Path, text_key: str) -> Iterator[Record]:
    lines: list[str] = []
    start = 0
    for number, line in _lines(path):
        if line.strip():
            start = start if lines else number
            lines.append(line)
        elif lines:
            yield f"{path}:{start}", {text_key: "".join(lines).rstrip("\r\n")}
            lines = []
    if lines:
        yield f"{path}:{start}", {text_key: "".join(lines).rstrip("\r\n")}


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for record in batch.to_pylist():
                    row += 1
                    yield f"{path}, row {row}", record
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None


def _hugging_face(source: str, split: str) -> Iterator[Record]:
    import datasets

    name, _, configuration = source.partition(":")
    try:
        records = datasets.load_dataset(name, configuration or None, split=split, streaming=True)
        for row, record in enumerate(records, start=1):
            yield f"{source}, row {row}", record
    except Exception as error:  # the hub, its caches and the builders raise whatever they meet
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{source}: neither a data file nor a dataset that can be loaded with split {split!r} "
            f"({type(error).__name__}: {reason})"
        ) from error
