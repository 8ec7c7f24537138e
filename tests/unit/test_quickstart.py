"""The quickstart's parts that need no training; the whole path is run by its own smoke test."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

from megaokd.config_file import load_config
from megaokd.errors import UserError
from megaokd.tools import quickstart


@pytest.mark.parametrize("name", ["plain", "with space: and 'quotes'"])
def test_recipes_are_valid_for_every_method_and_scale(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    quickstart._prepare(folder)
    teacher = load_config(folder / "teacher.yaml", quickstart.SMOKE.teacher)
    assert teacher.teacher.path is None
    assert teacher.checkpoint.folder == str(folder / "teacher")
    for scale in (quickstart.Scale(), quickstart.SMOKE):
        configs = {
            method: load_config(folder / "student.yaml", [*scale.student, *overrides])
            for method, (_, overrides) in quickstart.STUDENTS.items()
        }
        supervised, frozen, online = configs.values()
        assert supervised.teacher.path is None
        assert frozen.teacher.path == online.teacher.path == str(folder / "teacher" / "student")
        assert frozen.teacher.online is None
        assert online.teacher.online is not None
        for config in configs.values():  # nothing else may differ between the methods
            assert (config.student, config.train, config.data) == (online.student, online.train, online.data)
            assert config.optimizer == online.optimizer


def test_a_former_quickstart_is_replaced_only_when_told_to_and_other_folders_never(tmp_path: Path) -> None:
    quickstart._prepare(tmp_path / "run")
    (tmp_path / "run" / "data").mkdir()
    with pytest.raises(UserError, match=r"holds a former quickstart.*--overwrite"):
        quickstart.main(["--smoke", "--folder", str(tmp_path / "run")])
    assert (tmp_path / "run" / "data").exists()
    quickstart._check_folder(tmp_path / "run", overwrite=True)
    quickstart._prepare(tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        quickstart.main(["--overwrite", "--folder", str(tmp_path / "other")])
    assert (tmp_path / "other" / "thesis.txt").read_text() == "years of work"


def test_nothing_is_removed_for_data_that_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    quickstart._prepare(folder)
    (folder / "results.md").write_text("seven minutes")
    with pytest.raises(UserError, match="nofile"):
        quickstart.main(["--data", str(tmp_path / "nofile.jsonl"), "--folder", str(folder), "--overwrite"])
    assert (folder / "results.md").read_text() == "seven minutes"


def test_a_smoke_run_stays_out_of_the_real_ones_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "quickstart_smoke"):
        quickstart._prepare(Path("runs") / name)
    with pytest.raises(UserError, match=r"^runs/quickstart_smoke: holds"):
        quickstart.main(["--smoke"])
    with pytest.raises(UserError, match=r"^runs/quickstart: holds"):
        quickstart.main([])


def test_a_failing_command_is_named_with_its_status_and_last_lines(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"exit status 2:\n\$ megaokd frobnicate 'a b'\n(.|\n)*unknown command"):
        quickstart.Commands(tmp_path).run("Fail", "megaokd", "frobnicate", "a b")
    assert "megaokd frobnicate 'a b'" in (tmp_path / "commands.sh").read_text()


def test_own_data_is_split_so_that_no_prompt_is_in_two_parts(tmp_path: Path) -> None:
    rows = [{"question": f"q{index % 300}", "answer": f"a{index}"} for index in range(900)]
    source = tmp_path / "own.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = Namespace(data=str(source), split="train", prompt_key="question", response_key="answer")
    parts = {part: [json.loads(line) for line in lines] for part, lines in quickstart._split(options).items()}
    assert list(parts) == list(quickstart.PARTS)
    assert sum(map(len, parts.values())) == 900
    assert sum(len({row["prompt"] for row in part}) for part in parts.values()) == 300
    source.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match="too few examples"):
        quickstart._split(options)
