"""Where commands write: what cannot be written, or would be lost, is told before the work."""

from pathlib import Path

import pytest

from megaokd.cli import main
from megaokd.errors import UserError
from megaokd.files import check_output_folder


def test_a_place_is_refused_in_one_sentence_and_left_as_it_was(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "a" / "b")
    check_output_folder(tmp_path)
    assert not any(tmp_path.iterdir())
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/below")):
        with pytest.raises(UserError, match=f"^{place}: no folder that can be written"):
            check_output_folder(place)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_forbids_writing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match="Permission denied"):
        check_output_folder(tmp_path)


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--model", "absent", "--data", "data", "--output", "FILE"],
        ["export", "run.yaml", "--output", "FILE/export"],
        ["generate", "--model", "absent", "--prompts", "absent.jsonl", "--output", "FILE/responses.jsonl"],
        ["corpus", "--output", "FILE"],
        ["tokenizer", "--input", "absent.jsonl", "--output", "FILE"],
        ["debian-descriptions", "--output", "FILE"],
        ["quickstart", "--folder", "FILE/below"],
    ],
    ids=lambda command: command[0],
)
def test_commands_look_at_their_output_first(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("megaokd.data.dataset.TokenDataset", lambda path: None)
    Path("FILE").write_text("mine")
    Path("run.yaml").write_text("data: {train: data}\ntrain: {steps: 1}\ncheckpoint: {folder: run}\n")
    assert main(command) == 2
    assert "no folder that can be written" in capsys.readouterr().err


def test_a_tokenizer_is_written_over_only_when_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("of all data sets")
    (tmp_path / "text.txt").write_text("\n\n".join(f"word{n} other{n * n}" for n in range(300)))
    words = ["tokenizer", "--input", str(tmp_path / "text.txt"), "--output", str(tmp_path / "tokenizer")]
    words += ["--vocab-size", "290"]
    assert main(words) == 2
    assert "tokenizer: not empty" in capsys.readouterr().err
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_text() == "of all data sets"
    assert main([*words, "--overwrite"]) == 0
    assert (tmp_path / "tokenizer" / "tokenizer.json").read_text() != "of all data sets"
