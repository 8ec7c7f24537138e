"""Token datasets: what is written is what is read, complete or not at all."""

import json
import mmap
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from megaokd.cli import main
from megaokd.data.dataset import TokenDataset
from megaokd.data.examples import Example
from megaokd.data.preprocess import PreprocessOptions, preprocess
from megaokd.data.token_format import Meta, token_dtype
from megaokd.data.tokenizer import encode_prompts, encode_texts, load_tokenizer, vocabulary_hash
from megaokd.errors import UserError
from tests.unit.data_helpers import EXAMPLES, token_dataset, tokenizer_folder, write_jsonl


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TokenDataset:
    return token_dataset(tmp_path_factory.mktemp("dataset"))


def copy_of(dataset: TokenDataset, folder: Path) -> Path:
    return Path(shutil.copytree(dataset.folder, folder / "copy"))


def test_instruction_examples_are_bos_prompt_response_eos(dataset: TokenDataset) -> None:
    tokenizer = load_tokenizer(dataset.tokenizer_path)
    prompts = encode_prompts(tokenizer, [example.prompt for example in EXAMPLES])
    responses = encode_texts(tokenizer, [example.response for example in EXAMPLES])
    assert len(dataset) == len(EXAMPLES)
    for index, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert dataset[index].tolist() == [*prompt, *response, 2]
        assert dataset.prompt_lengths[index] == len(prompt)
        assert dataset.lengths[index] == len(dataset[index])
    assert prompts[0][0] == 1
    assert dataset.vocab_size == 300
    assert dataset.vocabulary_hash == vocabulary_hash(tokenizer)
    assert dataset.meta.kind == "instruction"
    assert dataset.meta.num_tokens == dataset.lengths.sum()
    assert dataset.meta.num_loss_tokens == (dataset.lengths - dataset.prompt_lengths).sum()


def test_the_index_stays_in_its_file(dataset: TokenDataset) -> None:
    for column in (dataset.lengths, dataset.prompt_lengths):
        assert type(column) is np.ndarray
        owner: object = column
        while isinstance(owner, np.ndarray):
            owner = owner.base
        assert isinstance(owner, mmap.mmap)


def test_a_response_that_was_cut_gets_no_end(tmp_path: Path) -> None:
    """Marked as `megaokd generate` marks it; those beside it keep theirs, and a template's end is left out too."""
    tokenizer = load_tokenizer(tokenizer_folder(tmp_path / "tokenizer"))
    marks = ("stop", "length", None, "length")
    records = [{"prompt": f"item {n}", "output": " of a" * n, "finish_reason": mark} for n, mark in enumerate(marks)]
    source = write_jsonl(tmp_path / "x.jsonl", records)
    preprocess([str(source)], str(tmp_path / "tokenizer"), tmp_path / "data")
    prompts = encode_prompts(tokenizer, [record["prompt"] for record in records])
    responses = encode_texts(tokenizer, [record["output"] for record in records])
    dataset = TokenDataset(tmp_path / "data")
    for index, mark in enumerate(marks):
        ending = [] if mark == "length" else [2]
        assert dataset[index].tolist() == [*prompts[index], *responses[index], *ending]
        assert dataset.prompt_lengths[index] == len(prompts[index])

    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}[{{ m.content }}|{% endfor %}{{ '[' if add_generation_prompt }}"
    )
    preprocess(
        [str(source)], str(tmp_path / "tokenizer"), tmp_path / "chat",
        PreprocessOptions(chat_template=str(tmp_path / "chat.jinja")),
    )  # fmt: skip
    chat = TokenDataset(tmp_path / "chat")
    for index, mark in enumerate(marks):
        response = records[index]["output"] + ("" if mark == "length" else "|")
        assert tokenizer.decode(chat[index][chat.prompt_lengths[index] :]).strip() == response.strip()


def test_documents_are_one_stream_in_which_every_token_is_predicted_once(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder(tmp_path / "tokenizer"))
    texts = [f"Document {n}: " + "a list, " * n for n in range(30)]
    source = write_jsonl(tmp_path / "x.jsonl", [{"text": text} for text in texts])
    options = PreprocessOptions(block_length=16)
    meta = preprocess([str(source)], str(tmp_path / "tokenizer"), tmp_path / "data", options).meta
    stream = [token for ids in encode_texts(tokenizer, texts) for token in (1, *ids, 2)]
    dataset = TokenDataset(tmp_path / "data")
    blocks = [dataset[index].tolist() for index in range(len(dataset))]
    assert {len(block) for block in blocks[:-1]} == {17}
    assert 2 <= len(blocks[-1]) <= 17
    assert stream == [*blocks[0][:1], *(token for block in blocks for token in block[1:])]
    assert all(former[-1] == latter[0] for former, latter in pairwise(blocks))
    assert dataset.prompt_lengths.tolist() == [1] * len(blocks)
    assert meta.kind == "text"
    assert meta.num_loss_tokens == len(stream) - 1


def test_text_markup_never_becomes_a_special_token(tmp_path: Path) -> None:
    dataset = token_dataset(tmp_path, [Example("</s><s>", "</s>")])
    assert dataset[0].tolist().count(2) == 1
    assert dataset[0].tolist().count(1) == 1


def preprocess_examples(
    examples: Sequence[Example], folder: Path, output: Path, options: PreprocessOptions | None = None
) -> Meta:
    """With the tokenizer of a token dataset's folder."""
    source = write_jsonl(folder / "examples.jsonl", [{"prompt": e.prompt, "response": e.response} for e in examples])
    return preprocess([str(source)], str(folder / "tokenizer"), output, options).meta


def test_the_fingerprint_follows_the_content(dataset: TokenDataset, tmp_path: Path) -> None:
    folder = copy_of(dataset, tmp_path)
    assert TokenDataset(folder).fingerprint == dataset.fingerprint
    assert preprocess_examples(EXAMPLES, folder, tmp_path / "again").fingerprint == dataset.fingerprint
    assert preprocess_examples(EXAMPLES[::-1], folder, tmp_path / "reversed").fingerprint != dataset.fingerprint
    moved = [Example(EXAMPLES[0].prompt + "R", EXAMPLES[0].response[1:]), *EXAMPLES[1:]]
    assert preprocess_examples(moved, folder, tmp_path / "moved").fingerprint != dataset.fingerprint


def test_a_large_vocabulary_needs_wider_tokens() -> None:
    assert token_dtype(65536) == np.uint16
    assert token_dtype(65537) == np.uint32


def test_nothing_is_left_of_a_run_that_failed(dataset: TokenDataset, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", [*({"prompt": "p", "response": "r"} for _ in range(50)), {"prompt": 1}])
    for output in ("data", "deeper/data"):
        with pytest.raises(UserError, match=r"x\.jsonl:51: no 'response' .*--on-error skip"):
            preprocess([str(source)], str(dataset.tokenizer_path), tmp_path / output)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deeper", "x.jsonl"]


def test_an_existing_folder_is_replaced_only_when_asked(dataset: TokenDataset, tmp_path: Path) -> None:
    folder = copy_of(dataset, tmp_path)
    with pytest.raises(UserError, match="pass --overwrite"):
        preprocess_examples(EXAMPLES[:3], folder, folder)
    assert len(TokenDataset(folder)) == len(EXAMPLES)
    preprocess_examples(EXAMPLES[:3], folder, folder, PreprocessOptions(overwrite=True))
    assert len(TokenDataset(folder)) == 3
    assert list(tmp_path.iterdir()) == [folder]
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match="not a token dataset"):
        preprocess_examples(EXAMPLES, folder, tmp_path / "mine", PreprocessOptions(overwrite=True))


def test_nothing_to_learn(dataset: TokenDataset, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("\n")
    with pytest.raises(UserError, match="the dataset is empty"):
        preprocess([str(tmp_path / "x.jsonl")], str(dataset.tokenizer_path), tmp_path / "data")
    for number, line in enumerate(("[1]", "{")):
        (tmp_path / "x.jsonl").write_text(f"{line}\n" * (number + 1))
        options = PreprocessOptions(on_error="skip")
        with pytest.raises(UserError, match="no usable example"):
            preprocess([str(tmp_path / "x.jsonl")], str(dataset.tokenizer_path), tmp_path / "data", options)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["tokens.bin", "index.npy", "meta.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_file_is_named(dataset: TokenDataset, tmp_path: Path, name: str, damage: str) -> None:
    file = copy_of(dataset, tmp_path) / name
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        file.unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        TokenDataset(file.parent)


def test_other_damage(dataset: TokenDataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such token dataset"):
        TokenDataset(tmp_path / "missing")
    folder = copy_of(dataset, tmp_path)
    meta = json.loads((folder / "meta.json").read_text())
    for change, message in (
        ({"format_version": 99}, "format version 99"),
        ({"num_tokens": "many"}, "num_tokens is missing or damaged"),
        ({"num_examples": 7}, r"index\.npy: holds int64 \[50, 3\], expected int64 \[7, 3\]"),
    ):
        (folder / "meta.json").write_text(json.dumps({**meta, **change}))
        with pytest.raises(UserError, match=message):
            TokenDataset(folder)
    (folder / "meta.json").write_text(json.dumps(meta))
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(UserError, match="the tokenizer is missing"):
        TokenDataset(folder)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = [{"prompt": example.prompt, "response": example.response} for example in EXAMPLES]
    data = str(write_jsonl(tmp_path / "train.jsonl", records))
    tokenizer, output = str(tmp_path / "tokenizer"), str(tmp_path / "data")
    assert main(["tokenizer", "--input", data, "--output", tokenizer, "--vocab-size", "300"]) == 0
    command = ["preprocess", "--input", data, "--tokenizer", tokenizer, "--output", output]
    assert main(command) == 0
    assert "50 examples" in capsys.readouterr().out
    assert len(TokenDataset(output)) == 50
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("megaokd: error: ")
    assert main([*command, "--overwrite"]) == 0
