"""Preprocessing at scale: any number of workers, any number of kills, any malformed record, the same bytes."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from megaokd.cli import main
from megaokd.data import progress_bar, sources, tables
from megaokd.data.dataset import TokenDataset
from megaokd.data.examples import Keys
from megaokd.data.journal import Journal
from megaokd.data.preprocess import PreprocessOptions, preprocess
from megaokd.data.tokenizer import load_tokenizer
from megaokd.errors import UserError
from tests.unit.data_helpers import EXAMPLES, tokenizer_folder, write_jsonl

RECORDS = [{"prompt": e.prompt, "response": e.response, "text": f"{n}: {e.response}"} for n, e in enumerate(EXAMPLES)]
TEXT = PreprocessOptions(keys=Keys(prompt="none"), block_length=16, commit_seconds=0.0, workers=1)
INSTRUCTIONS = PreprocessOptions(commit_seconds=0.0, workers=1)
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tokenizer_folder(tmp_path_factory.mktemp("preprocess") / "tokenizer"))


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CHUNK_BYTES", 700)
    monkeypatch.setattr(tables, "CHUNK_BYTES", 700)
    monkeypatch.setattr(tables, "CHUNK_ROWS", 7)


def jsonl(folder: Path) -> list[str]:
    return [str(write_jsonl(folder / f"{n}.jsonl", RECORDS[n::2])) for n in range(2)]


def parquet(folder: Path) -> list[str]:
    for number in range(2):
        table = pyarrow.Table.from_pylist(RECORDS[number::2])
        pyarrow.parquet.write_table(table, folder / f"{number}.parquet", row_group_size=10)
    return [str(folder / f"{number}.parquet") for number in range(2)]


def hugging_face(folder: Path) -> list[str]:
    (folder / "dataset").mkdir()
    write_jsonl(folder / "dataset" / "train.jsonl", RECORDS)
    return [str(folder / "dataset")]


def text(folder: Path) -> list[str]:
    paragraphs = "\n \n\n".join(f"{record['text']}\nand so on" for record in RECORDS)
    (folder / "x.txt").write_text(f"\ufeff{paragraphs}\n", encoding="utf-8")
    return [str(folder / "x.txt")]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def interrupt_at(monkeypatch: pytest.MonkeyPatch, commit: int) -> None:
    """Ends the job behind its `commit`-th commit, with bytes written that the journal does not know."""
    original, calls = Journal.commit, [0]

    def interrupted(journal: Journal) -> None:
        original(journal)
        calls[0] += 1
        if calls[0] == commit:
            for file in journal._files.values():
                file.write(b"garbage")
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "commit", interrupted)


@pytest.mark.parametrize(
    ("write", "options"),
    [(jsonl, INSTRUCTIONS), (jsonl, TEXT), (parquet, INSTRUCTIONS), (hugging_face, INSTRUCTIONS), (text, TEXT)],
)
def test_interrupted_anywhere_the_same_command_gives_the_same_bytes(
    write: Callable[[Path], list[str]], options: PreprocessOptions, tokenizer: str, tmp_path: Path
) -> None:
    inputs = write(tmp_path)
    expected = preprocess(inputs, tokenizer, tmp_path / "whole", options)
    assert not expected.resumed
    for commit in (1, 3, 5):
        output = tmp_path / f"interrupted{commit}"
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, commit)
            with pytest.raises(KeyboardInterrupt):
                preprocess(inputs, tokenizer, output, options)
        assert not output.exists()
        assert preprocess(inputs, tokenizer, output, options).resumed
        assert content(output) == content(tmp_path / "whole")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_changed_input_or_option_begins_anew(tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = jsonl(tmp_path)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            preprocess(inputs, tokenizer, tmp_path / "data", INSTRUCTIONS)
    write_jsonl(tmp_path / "0.jsonl", RECORDS[:3])
    assert not preprocess(inputs, tokenizer, tmp_path / "data", INSTRUCTIONS).resumed
    assert len(TokenDataset(tmp_path / "data")) == 3 + 25


def test_a_damaged_partial_folder_begins_anew(tokenizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = jsonl(tmp_path)
    preprocess(inputs, tokenizer, tmp_path / "whole", INSTRUCTIONS)
    for name in ("tokens.bin", "journal.json"):
        with monkeypatch.context() as patch:
            interrupt_at(patch, 2)
            with pytest.raises(KeyboardInterrupt):
                preprocess(inputs, tokenizer, tmp_path / name, INSTRUCTIONS)
        (tmp_path / f".{name}.partial" / name).write_bytes(b"{")
        assert not preprocess(inputs, tokenizer, tmp_path / name, INSTRUCTIONS).resumed
        assert content(tmp_path / name) == content(tmp_path / "whole")


KILLED = """
import os, signal, sys
from megaokd.data import sources
from megaokd.data.journal import Journal
from megaokd.data.preprocess import PreprocessOptions, preprocess

if __name__ == "__main__":
    sources.CHUNK_BYTES = 700
    commit, calls = Journal.commit, []
    def killed(journal):
        commit(journal)
        calls.append(1)
        if len(calls) == 3:
            print(*(p.pid for p in __import__("multiprocessing").active_children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[1] == "kill":
        Journal.commit = killed
    preprocess(sys.argv[4:], sys.argv[2], sys.argv[3], PreprocessOptions(commit_seconds=0.0, workers=2))
"""


@pytest.mark.slow
def test_killed_with_two_workers_and_started_again(tokenizer: str, tmp_path: Path) -> None:
    inputs = jsonl(tmp_path)
    expected = preprocess(inputs, tokenizer, tmp_path / "whole", INSTRUCTIONS)
    (tmp_path / "job.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "job.py")]
    rest = [tokenizer, str(tmp_path / "data"), *inputs]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run([*command, "kill", *rest], env=environment, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    workers = [int(pid) for pid in killed.stdout.split()]
    assert workers
    deadline = time.monotonic() + 10.0
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, "workers outlive the process that started them"
        time.sleep(0.05)
    assert not (tmp_path / "data").exists()
    subprocess.run([*command, "finish", *rest], env=environment, check=True, timeout=120)
    assert content(tmp_path / "data") == content(tmp_path / "whole")
    assert TokenDataset(tmp_path / "data").fingerprint == expected.meta.fingerprint


@pytest.mark.parametrize(
    ("write", "end"),
    [
        ([jsonl], r"tokenizing: 100%\S* {size}/{size} .*, malformed=0, tokens={tokens}\]"),
        ([hugging_face, jsonl], r"tokenizing: 100 records \[.*, malformed=0, tokens={tokens}\]"),
    ],
)
def test_a_log_gets_lines(
    write: list[Callable[[Path], list[str]]],
    end: str,
    tokenizer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One a minute; bytes of files, records where an input is none."""
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 0.0)
    inputs = [source for each in write for source in each(tmp_path)]
    options = PreprocessOptions(progress=True, workers=1)
    tokens = preprocess(inputs, tokenizer, tmp_path / "data", options).meta.num_tokens
    told = capsys.readouterr().err
    assert "\r" not in told
    lines = told.splitlines()
    assert len(lines) > 5
    size = f"{sum(Path(source).stat().st_size for source in inputs) / 1000:.1f}".rstrip("0") + r"\d?k"
    assert re.fullmatch(end.replace("{size}", size).replace("{tokens}", str(tokens)), lines[-1])
    monkeypatch.setattr(progress_bar, "LINE_SECONDS", 60.0)
    preprocess(inputs, tokenizer, tmp_path / "quick", options)
    assert not capsys.readouterr().err


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A file that grows beyond it fails as on a full disk, with another reason."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_that_is_full_is_told(tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While tokens are written, at the end, and when the tokenizer is saved; then it goes on."""
    write_jsonl(tmp_path / "x.jsonl", RECORDS[:20])
    command = ["preprocess", "--input", str(tmp_path / "x.jsonl"), "--tokenizer", tokenizer, "--workers", "1"]
    assert main([*command, "--output", str(tmp_path / "whole")]) == 0
    sizes = [(tmp_path / "whole" / name).stat().st_size for name in ("tokens.bin", "tokenizer/tokenizer.json")]
    assert 1000 < sizes[0] < sizes[1]
    capsys.readouterr()
    for size in (100, sizes[0] - 1, sizes[1] - 1):
        with files_of_at_most(size):
            assert main([*command, "--output", str(tmp_path / "data")]) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"megaokd: failed: {tmp_path}/.data.partial: the dataset cannot be written (")
        assert told.endswith("); make room and start the same command again\n")
        assert told.count("\n") == 1
        assert not (tmp_path / "data").exists()
    assert main([*command, "--output", str(tmp_path / "data")]) == 0
    assert content(tmp_path / "data") == content(tmp_path / "whole")


def test_an_output_that_cannot_be_made(tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [source, _] = jsonl(tmp_path)
    command = ["preprocess", "--input", source, "--tokenizer", tokenizer, "--output", f"{source}/x"]
    assert main(command) == 2
    assert "0.jsonl/.x.partial: this folder cannot be made or written to (Not a directory)" in capsys.readouterr().err


def test_a_second_process_does_not_write_the_same_dataset(tokenizer: str, tmp_path: Path) -> None:
    with (
        Journal(tmp_path / ".data.partial", "x", np.dtype("uint16")),
        pytest.raises(UserError, match="another process is writing"),
    ):
        preprocess(jsonl(tmp_path), tokenizer, tmp_path / "data", INSTRUCTIONS)


BAD = [
    "{",
    "[1]",
    '{"prompt": "p"}',
    '{"prompt": "p", "response": 3}',
    '{"text": "t"}',
    '{"prompt": "p", "resp',
    r'{"prompt": "half \ud83d", "response": "r"}',
    r'{"messages": [{"role": "assistant", "content": "\ude00"}]}',
    r'{"\ud800": "r"}',
    f'{{"prompt": "p", "response": "r", "score": {"9" * 5000}}}',
]


def test_malformed_records_are_left_out_and_listed(
    tokenizer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [json.dumps(record) for record in RECORDS]
    lines = [line for pair in zip(good, [*BAD, *[""] * 40], strict=True) for line in pair]
    (tmp_path / "x.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"prompt": "\xff", "response": "cut')
    write_jsonl(tmp_path / "good.jsonl", RECORDS)
    command = ["preprocess", "--tokenizer", tokenizer, "--workers", "1", "--input"]
    assert main([*command, str(tmp_path / "good.jsonl"), "--output", str(tmp_path / "good")]) == 0
    command += [str(tmp_path / "x.jsonl"), "--output", str(tmp_path / "data")]
    assert main(command) == 2
    assert "x.jsonl:2: not valid JSON" in capsys.readouterr().err
    assert main([*command, "--on-error", "skip"]) == 0
    assert "11 malformed records were left out; " in capsys.readouterr().err
    assert TokenDataset(tmp_path / "data").fingerprint == TokenDataset(tmp_path / "good").fingerprint
    listed = (tmp_path / "data" / "malformed.txt").read_text().splitlines()
    assert [int(line.split("x.jsonl:")[1].split(":")[0]) for line in listed] == [*range(2, 21, 2), 101]
    assert r"the value of 'prompt' holds half a character (the surrogate '\ud83d' without" in listed[6]
    assert "'content' of message 1 of 'messages' holds half a character" in listed[7]
    assert r"found the keys: \ud800" in listed[8]
    assert "a number cannot be read (Exceeds the limit" in listed[9]
    assert "not UTF-8" in listed[-1]
    assert not (tmp_path / "good" / "malformed.txt").exists()


def test_more_malformed_records_than_good_ones_end_the_command(tokenizer: str, tmp_path: Path) -> None:
    """A stray first record makes a dataset of its kind; `skip` is for strays, not for the data."""
    options = PreprocessOptions(on_error="skip", workers=1)
    source = write_jsonl(tmp_path / "x.jsonl", [{"text": "stray"}, *RECORDS, *RECORDS])
    with pytest.raises(
        UserError,
        match=r"^100 of 101 records are malformed, .* half of them at most; the first is .*x\.jsonl:2: .*cannot be "
        r"mixed in one dataset, and its first record is plain text$",
    ):
        preprocess([str(source)], tokenizer, tmp_path / "data", options)
    assert not (tmp_path / "data").exists()
    write_jsonl(source, [*RECORDS, *[{"text": "stray"}] * 50])
    assert preprocess([str(source)], tokenizer, tmp_path / "data", options).num_malformed == 50


def test_what_skip_left_out_before_a_kill_stops_a_command_without_it(tokenizer: str, tmp_path: Path) -> None:
    """As it does without the kill; the other way round goes on."""
    source = write_jsonl(tmp_path / "x.jsonl", [*RECORDS[:9], {"prompt": "p"}, *RECORDS])
    options = PreprocessOptions(on_error="skip", commit_seconds=0.0, workers=1)
    expected = preprocess([str(source)], tokenizer, tmp_path / "whole", options).meta
    for before, commit in ((INSTRUCTIONS, 1), (options, 4)):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_at(patch, commit)
            with pytest.raises(KeyboardInterrupt):
                preprocess([str(source)], tokenizer, tmp_path / "data", before)
        with pytest.raises(UserError, match=r"x\.jsonl:10: no 'response' .*--on-error skip leaves such records out"):
            preprocess([str(source)], tokenizer, tmp_path / "data", INSTRUCTIONS)
        done = preprocess([str(source)], tokenizer, tmp_path / "data", options)
        assert done.resumed
        assert done.num_malformed == 1
        assert done.meta == expected
        shutil.rmtree(tmp_path / "data")


def test_a_row_that_is_not_utf8_is_left_out(tokenizer: str, tmp_path: Path) -> None:
    """Arrow's readers do not look; Python does, when it makes texts of them."""
    prompts = pyarrow.array([record["prompt"].encode() for record in RECORDS[:9]] + [b"\xff"]).view("string")
    table = pyarrow.table({"prompt": prompts, "response": ["r"] * 10})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    inputs = [str(tmp_path / "x.parquet")]
    with pytest.raises(UserError, match=r"x\.parquet, row 10: the row cannot be read \('utf-8' codec can't decode"):
        preprocess(inputs, tokenizer, tmp_path / "data", INSTRUCTIONS)
    options = PreprocessOptions(on_error="skip", workers=1)
    assert preprocess(inputs, tokenizer, tmp_path / "data", options).num_malformed == 1
    assert len(TokenDataset(tmp_path / "data")) == 9


def test_a_truncated_parquet_file_ends_the_command(tokenizer: str, tmp_path: Path) -> None:
    path = Path(parquet(tmp_path)[0])
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        preprocess([str(path)], tokenizer, tmp_path / "data", INSTRUCTIONS)


def conversations() -> list[dict[str, object]]:
    first = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a list"}]
    answer = {"role": "assistant", "content": "Return item 1"}
    return [{"messages": [*first, answer]}, {"messages": [*first, answer, {"role": "user", "content": "item"}, answer]}]


def test_conversations_are_rendered_and_only_the_last_answer_is_learned(tokenizer: str, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    source = str(write_jsonl(tmp_path / "x.jsonl", [*conversations(), RECORDS[0]]))
    options = PreprocessOptions(chat_template=str(tmp_path / "chat.jinja"))
    preprocess([source], tokenizer, tmp_path / "data", options)
    dataset = TokenDataset(tmp_path / "data")
    loaded = load_tokenizer(dataset.tokenizer_path)
    assert loaded.chat_template == TEMPLATE
    for index, messages in enumerate(
        [
            *(record["messages"] for record in conversations()),
            [
                {"role": "user", "content": RECORDS[0]["prompt"]},
                {"role": "assistant", "content": RECORDS[0]["response"]},
            ],
        ]
    ):
        prompt = loaded.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=False)
        split = dataset.prompt_lengths[index]
        ids = dataset[index]
        assert loaded.decode(ids[:split]) == prompt
        assert loaded.decode(ids[split:]) == messages[-1]["content"] + "</s>\n"
        assert ids.tolist().count(2) == len(messages)  # markup of the template is the special token


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "must be a list of messages"),
        ("hello", "must be a list of messages, found str"),
        ([{"role": "user", "content": "a"}], "the last message must be the assistant's, found 'user'"),
        ([{"role": "assistant", "content": None}], "message 1 of 'messages' must have 'role' and 'content'"),
    ],
)
def test_bad_conversations(tokenizer: str, tmp_path: Path, messages: object, message: str) -> None:
    (tmp_path / "chat.jinja").write_text(TEMPLATE)
    source = str(write_jsonl(tmp_path / "x.jsonl", [*conversations(), {"messages": messages}]))
    options = PreprocessOptions(chat_template=str(tmp_path / "chat.jinja"))
    with pytest.raises(UserError, match=rf"x\.jsonl:3: .*{message}"):
        preprocess([source], tokenizer, tmp_path / "data", options)


def test_templates_that_are_missing_or_do_not_fit(tokenizer: str, tmp_path: Path) -> None:
    source = str(write_jsonl(tmp_path / "x.jsonl", conversations()))
    with pytest.raises(UserError, match="this tokenizer has no chat template"):
        preprocess([source], tokenizer, tmp_path / "data", INSTRUCTIONS)
    options = PreprocessOptions(chat_template=str(tmp_path / "no.jinja"))
    with pytest.raises(UserError, match=r"--chat-template .*no\.jinja: the file cannot be read"):
        preprocess([source], tokenizer, tmp_path / "data", options)
    for template, message in (
        ("{{ raise_exception('no system role') }}", "refuses these messages .no system role"),
        ("{{ messages | length }}", "does not put the last answer behind the prompt"),
        ("{% if %}", "refuses these messages"),
    ):
        (tmp_path / "chat.jinja").write_text(template)
        options = PreprocessOptions(chat_template=str(tmp_path / "chat.jinja"))
        with pytest.raises(UserError, match=rf"x\.jsonl:1: the chat template {message}"):
            preprocess([source], tokenizer, tmp_path / "data", options)


def test_a_sentencepiece_file_and_a_tokenizer_file_give_the_ids_of_the_folder(tokenizer: str, tmp_path: Path) -> None:
    inputs = jsonl(tmp_path)
    for name in ("", "tokenizer.model", "tokenizer.json"):
        preprocess(inputs, str(Path(tokenizer) / name), tmp_path / f"data{name}", INSTRUCTIONS)
    bare = tmp_path / "bare.json"
    bare.write_bytes((Path(tokenizer) / "tokenizer.json").read_bytes())
    with pytest.raises(UserError, match=r"no end-of-sequence token .*--eos-token"):
        preprocess(inputs, str(bare), tmp_path / "data2", INSTRUCTIONS)
    with pytest.raises(UserError, match="no token '<end>'"):
        preprocess(inputs, str(bare), tmp_path / "data2", PreprocessOptions(eos_token="<end>"))
    preprocess(inputs, str(bare), tmp_path / "data2", PreprocessOptions(eos_token="</s>"))
    expected = TokenDataset(tmp_path / "data")
    for name in ("datatokenizer.model", "datatokenizer.json"):
        assert TokenDataset(tmp_path / name).fingerprint == expected.fingerprint
    without_bos = TokenDataset(tmp_path / "data2")
    assert [ids.tolist() for ids in (without_bos[0], without_bos[9])] == [expected[n][1:].tolist() for n in (0, 9)]


def test_numbers_that_make_no_sense(tokenizer: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["preprocess", "--input", "x", "--tokenizer", tokenizer, "--output", "y", "--workers", "0"])
    assert "--workers must be at least 1" in capsys.readouterr().err
