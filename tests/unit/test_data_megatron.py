"""Megatron's .bin and .idx, written here as its own indexed dataset writes them."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megaokd.config_file import parse_config
from megaokd.data.batch import BatchShape
from megaokd.data.batches import BatchOptions, TrainBatches
from megaokd.data.megatron import MegatronDataset
from megaokd.data.mixture import open_training_data
from megaokd.errors import UserError
from tests.unit.data_helpers import token_dataset, tokenizer_folder

DOCUMENTS = [[5, 6, 7], list(range(10, 31)), [9], [1, 2, 3, 4, 5, 6, 7, 8, 9], [], [299, 0]]
CODES = {np.uint8: 1, np.int32: 4, np.int64: 5, np.uint16: 8}


def write(prefix: Path, documents: list[list[int]], dtype: Any = np.uint16, *, split: int | None = None) -> None:
    """With `split`, each document is stored as sequences of so many tokens (as sentences are)."""
    sequences = [
        [d[i : i + (split or len(d))] for i in range(0, len(d), split or len(d))] if d else [d] for d in documents
    ]
    flat = [sequence for document in sequences for sequence in document]
    lengths = np.array([len(sequence) for sequence in flat], dtype=np.int32)
    pointers = (np.cumsum(lengths, dtype=np.int64) - lengths) * np.dtype(dtype).itemsize
    boundaries = np.cumsum([0, *(len(document) for document in sequences)], dtype=np.int64)
    Path(f"{prefix}.bin").write_bytes(np.concatenate([np.array(s, dtype=dtype) for s in flat]).tobytes())
    Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, CODES[dtype], len(flat), len(boundaries))
        + lengths.tobytes()
        + pointers.tobytes()
        + boundaries.tobytes()
    )


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tokenizer_folder(tmp_path_factory.mktemp("megatron") / "tokenizer")


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint16])
@pytest.mark.parametrize("split", [None, 2])
def test_documents_become_examples(tokenizer: Path, tmp_path: Path, dtype: Any, split: int | None) -> None:
    write(tmp_path / "x", DOCUMENTS, dtype, split=split)
    dataset = MegatronDataset(str(tmp_path / "x"), tokenizer, block_length=8)
    assert [dataset[index].tolist() for index in range(len(dataset))] == [
        [5, 6, 7],
        list(range(10, 19)),
        list(range(18, 27)),
        list(range(26, 31)),
        [1, 2, 3, 4, 5, 6, 7, 8, 9],
        [299, 0],
    ]
    assert dataset.lengths.tolist() == [3, 9, 9, 5, 9, 2]
    assert dataset.prompt_lengths.tolist() == [1] * 6
    predicted = sum(max(len(document) - 1, 0) for document in DOCUMENTS)
    assert (dataset.lengths - 1).sum() == predicted, "every token but a document's first is predicted once"


def test_it_trains_and_mixes(tokenizer: Path, tmp_path: Path) -> None:
    write(tmp_path / "x", DOCUMENTS)
    other = token_dataset(tmp_path)
    sections = {"train": {"steps": 1}, "checkpoint": {"folder": "x"}}
    mixture = [{"path": str(tmp_path / "x")}, {"path": str(other.folder)}]
    data = parse_config(
        {"data": {"train": mixture, "tokenizer": str(tokenizer), "sequence_length": 8}, **sections}
    ).data
    mixed = open_training_data(data)
    assert len(mixed) == 56
    shape = BatchShape(sequence_length=8, bucket=8, global_batch=4, micro_batch=4)
    alone = MegatronDataset(str(tmp_path / "x"), tokenizer, block_length=8)
    batch = TrainBatches(alone, shape, seed=0, options=BatchOptions(packing=True)).batch(0)
    assert batch.tokens.shape == (1, 4, 8)
    with pytest.raises(UserError, match=r"set data\.tokenizer"):
        open_training_data(parse_config({"data": {"train": str(tmp_path / "x")}, **sections}).data)
    with pytest.raises(UserError, match=r"x\.idx: .* name them without their endings, .*x$"):
        open_training_data(parse_config({"data": {"train": str(tmp_path / "x.idx")}, **sections}).data)


def test_the_fingerprint_follows_the_content(tokenizer: Path, tmp_path: Path) -> None:
    write(tmp_path / "x", DOCUMENTS)
    write(tmp_path / "same", DOCUMENTS)
    write(tmp_path / "other", [[5, 6, 8], *DOCUMENTS[1:]])
    x, same, other = (
        MegatronDataset(str(tmp_path / name), tokenizer, block_length=8).fingerprint for name in ("x", "same", "other")
    )
    assert x == same != other
    assert MegatronDataset(str(tmp_path / "x"), tokenizer, block_length=7).fingerprint != x


def test_a_tokenizer_that_lacks_an_id_is_told(tokenizer: Path, tmp_path: Path) -> None:
    for name, token in (("large", 300), ("negative", -1)):
        write(tmp_path / name, [[1, 2], [3, token]], np.int32)
        dataset = MegatronDataset(str(tmp_path / name), tokenizer, block_length=8)
        assert dataset[0].tolist() == [1, 2]
        with pytest.raises(UserError, match=rf"token {token} near position 2 is not in the vocabulary .*300 tokens"):
            dataset[1]


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("idx", lambda data: data[:20], "not the index of a Megatron dataset"),
        ("idx", lambda data: b"something else entirely, long enough for a header", "not the index"),
        ("idx", lambda data: data[:-9], "truncated; 6 sequences and 7 boundaries"),
        ("idx", lambda data: data[:9] + b"\x02" + data[10:], "version 2 with dtype code 8 is not supported"),
        ("idx", lambda data: data[:17] + b"\x06" + data[18:], "dtype code 6 is not supported"),
        ("idx", lambda data: data[:34] + b"\x09" + data[35:], "damaged"),
        ("idx", lambda data: data[:-8] + b"\x03" + data[-7:], "damaged"),
        ("bin", lambda data: data[:-2], "70 bytes, the index speaks of 72: missing or truncated"),
        ("bin", None, "missing or truncated"),
        ("idx", None, "cannot be read"),
    ],
)
def test_bad_files(tokenizer: Path, tmp_path: Path, file: str, damage: Any, message: str) -> None:
    write(tmp_path / "x", DOCUMENTS)
    path = tmp_path / f"x.{file}"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message):
        MegatronDataset(str(tmp_path / "x"), tokenizer, block_length=8)


def test_documents_without_anything_to_predict(tokenizer: Path, tmp_path: Path) -> None:
    write(tmp_path / "x", [[1], [2], []])
    with pytest.raises(UserError, match="no document has two tokens"):
        MegatronDataset(str(tmp_path / "x"), tokenizer, block_length=8)
