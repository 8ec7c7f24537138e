"""Reading examples: every kind of file gives the same examples, every mistake one clear sentence."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from megaokd.data.examples import Document, Example, Keys, read_examples
from megaokd.errors import UserError
from tests.unit.data_helpers import write_jsonl

RECORDS = [{"prompt": "one ", "response": "1"}, {"prompt": "två\n", "response": ""}]
EXPECTED = [Example("one ", "1"), Example("två\n", "")]


def test_jsonl_and_parquet_and_a_dataset_folder_give_the_same_examples(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    jsonl = write_jsonl(folder / "train.jsonl", RECORDS)
    parquet = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), parquet)
    for source in (jsonl, parquet, folder):
        assert list(read_examples([str(source)])) == EXPECTED
    assert list(read_examples([str(jsonl), str(parquet)])) == EXPECTED * 2


def test_output_stands_in_for_response_and_keys_can_be_named(tmp_path: Path) -> None:
    records = [{"prompt": "p", "output": "o", "q": "Q", "a": "A"}]
    path = str(write_jsonl(tmp_path / "x.jsonl", records))
    assert list(read_examples([path])) == [Example("p", "o")]
    assert list(read_examples([path], keys=Keys(prompt="q", response="a"))) == [Example("Q", "A")]


def test_documents_from_jsonl_and_text(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"text": "a\nb"}, {"text": "c"}])
    text = tmp_path / "x.txt"
    text.write_text("\ufeffa\nb\n\n   \nc", encoding="utf-8")
    expected = [Document("a\nb"), Document("c")]
    assert list(read_examples([str(path)])) == expected
    assert list(read_examples([str(text)])) == expected
    assert list(read_examples([str(text)], keys=Keys(text="content"))) == expected


def test_blank_lines_and_a_byte_order_mark_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('\ufeff{"text": "a"}\n\n{"text": "b"}\n', encoding="utf-8")
    assert list(read_examples([str(path)])) == [Document("a"), Document("b")]


def test_reading_is_lazy(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\nnot json\n')
    assert list(islice(read_examples([str(path)]), 1)) == [Document("a")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', r"x\.jsonl:2: not valid JSON \(.*column"),
        ('{"text": "a"}\n[1]\n', r"x\.jsonl:2: each line must be one JSON object, found list"),
        ('{"prompt": "a"}\n', r"x\.jsonl:1: no 'response' or 'output' beside 'prompt'; found the keys: prompt"),
        ('{"question": "a"}\n', r"x\.jsonl:1: neither 'prompt' .* nor 'messages' nor 'text'; found the keys: question"),
        ("{}\n", r"x\.jsonl:1: .*found no keys at all"),
        ('{"prompt": "a", "response": 3}\n', r"x\.jsonl:1: the value of 'response' must be text, found int"),
        ('{"text": null}\n', r"x\.jsonl:1: the value of 'text' must be text, found NoneType"),
        ('{"text": "a"}\n{"prompt": "a", "response": "b"}\n', r"x\.jsonl:2: .*cannot be mixed"),
        ("\n\n", r"x\.jsonl: the dataset is empty"),
    ],
)
def test_a_bad_jsonl_file(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        list(read_examples([str(path)]))


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt"])
def test_text_that_is_not_utf8(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(UserError, match=rf"{name}:.* not UTF-8 text \(.*byte 10 of line 2\)"):
        list(read_examples([str(tmp_path / name)]))


def test_bad_parquet_files(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match=r"x\.parquet: not a readable Parquet file"):
        list(read_examples([str(path)]))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(UserError, match=r"x\.parquet, row 2: the value of 'text' must be text"):
        list(read_examples([str(path)]))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (Keys(prompt="instruction"), "neither 'instruction' with 'response' or 'output' nor 'messages' nor 'text'"),
        (Keys(prompt="question", response="answers"), "no 'answers' beside 'question'"),
    ],
)
def test_a_table_without_an_example_is_told_with_all_its_columns(tmp_path: Path, keys: Keys, message: str) -> None:
    """Also those that are not read where there is one."""
    table = pyarrow.table({"id": [7], "question": ["q"], "response": ["r"]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    for source in (tmp_path / "train.parquet", tmp_path):
        with pytest.raises(UserError, match=f"row 1: {message}; found the keys: id, question, response$"):
            list(read_examples([str(source)], keys=keys))
    assert Keys(prompt="question").columns(["id", "question", "response"]) == ["question", "response"]


def test_files_that_are_missing_or_of_another_kind(tmp_path: Path) -> None:
    for missing in (str(tmp_path / "missing.jsonl"), "missing.jsonl", str(tmp_path / "no" / "folder"), "./nothing"):
        with pytest.raises(UserError, match="there is no such file or folder"):
            list(read_examples([missing]))
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(UserError, match=r"must end in \.jsonl, \.parquet, \.txt, found '\.csv'"):
        list(read_examples([str(tmp_path / "x.csv")]))


def test_a_hugging_face_dataset_that_cannot_be_loaded(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", RECORDS)
    with pytest.raises(UserError, match="a dataset that can be loaded with split 'dev'"):
        list(read_examples([str(tmp_path)], split="dev"))


def test_a_bad_row_of_a_dataset_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "p", "response": "r"}, {"prompt": "p", "response": None}])
    reader: Iterator[Example | Document] = read_examples([str(tmp_path)])
    assert next(reader) == Example("p", "r")
    with pytest.raises(UserError, match=r"row 2: the value of 'response' must be text, found NoneType"):
        next(reader)


def test_records_with_other_fields_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"prompt": "p", "response": "r", "source": "m.f", "score": 1}) + "\n")
    assert list(read_examples([str(path)])) == [Example("p", "r")]
