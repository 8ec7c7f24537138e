"""Commands of the project as processes: what they say, and what becomes of them on an interruption."""

import pytest

from megaokd.cli import main
from megaokd.subcommand import run_command, shown_command


def test_a_misspelt_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "megaokd: unknown command 'trian'; did you mean 'train'?\n"
    assert main(["--local_rank=0"]) == 2
    assert "; one of train, " in capsys.readouterr().err
    assert main(["help"]) == 0
    assert capsys.readouterr().out.startswith("usage: megaokd COMMAND")


def test_status_and_last_lines_come_back() -> None:
    written: list[str] = []
    status, last_lines = run_command(["megaokd", "frobnicate"], written.append)
    assert status == 2
    assert last_lines == "".join(written).rstrip("\n")
    assert "unknown command 'frobnicate'" in last_lines


def test_what_an_interrupted_command_still_says_is_kept() -> None:
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if len(written) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_command(["megaokd", "--version"], write)
    assert len(written) == 2


def test_several_processes_are_shown_with_a_thread_each() -> None:
    assert shown_command(["torchrun", "-m", "a b"]) == "OMP_NUM_THREADS=1 torchrun -m 'a b'"
    assert shown_command(["megaokd", "train"]) == "megaokd train"
