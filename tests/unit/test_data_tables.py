"""Tables in chunks: nothing is lost between them, and none is large, however large rows and row groups are."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megaokd.data import tables
from megaokd.data.chunks import Position
from megaokd.data.sources import read_chunks
from tests.unit.data_helpers import write_jsonl

LENGTHS = [3] * 40 + [5000, 1, 700, 900, 900] + [40] * 200 + [90000]
RECORDS = [{"text": chr(97 + number % 26) * length} for number, length in enumerate(LENGTHS)]


BEGINNING = Position()


def chunks(source: Path, start: Position = BEGINNING) -> Iterator[tables.Rows]:
    def columns(names: Sequence[str]) -> list[str]:
        return list(names)

    for chunk in read_chunks(str(source), start, split="train", columns=columns, text_key="text"):
        assert isinstance(chunk, tables.Rows)
        yield chunk


def parquet(folder: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), folder / "x.parquet", row_group_size=160)
    return folder / "x.parquet"


def hugging_face(folder: Path) -> Path:
    write_jsonl(folder / "train.jsonl", RECORDS)
    return folder


@pytest.mark.parametrize("write", [parquet, hugging_face])
def test_a_chunk_is_bounded_in_rows_and_bytes(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is sent to a worker; only one row may be larger. Reading goes on at the end of any of them."""
    monkeypatch.setattr(tables, "CHUNK_BYTES", 2000)
    monkeypatch.setattr(tables, "CHUNK_ROWS", 30)
    source = write(tmp_path)
    found = list(chunks(source))
    assert [record for chunk in found for _, record in chunk.parse()] == RECORDS
    numbers = [int(where.rpartition(" ")[2]) for chunk in found for where, _ in chunk.parse()]
    assert numbers == list(range(1, len(RECORDS) + 1))
    for chunk in found:
        texts = [record["text"] for _, record in chunk.parse()]
        assert len(texts) <= 30
        assert len(texts) == 1 or len("".join(texts[:-1])) < 2000
        assert len(pickle.dumps(chunk)) < len("".join(texts)) + 3000
    assert max(len(list(chunk.parse())) for chunk in found) == 30
    for number, chunk in enumerate(found):
        assert [after.end for after in chunks(source, chunk.end)] == [after.end for after in found[number + 1 :]]
    assert all(before.end.offset < after.end.offset for before, after in pairwise(found))


PEAK = """
import re, sys
from pathlib import Path
import pyarrow.parquet
from megaokd.data.chunks import Position
from megaokd.data.tables import read_parquet

def peak():  # of this program; what getrusage tells has that of the process it was forked from in it
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) << 10

before = peak()
rows = sum(len(chunk.rows) for chunk in read_parquet(Path(sys.argv[1]), Position(), list))
print(rows, peak() - before)
"""


def test_memory_does_not_grow_with_a_row_group(tmp_path: Path) -> None:
    """128 MiB in one: they are never in memory all at once."""
    texts = [os.urandom(2048).hex() for _ in range(1 << 15)]
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=len(texts), compression="none")
    assert pyarrow.parquet.read_metadata(path).num_row_groups == 1
    assert path.stat().st_size > 128 << 20
    found = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True).stdout
    rows, growth = map(int, found.split())
    assert rows == len(texts)
    assert growth < 96 << 20
