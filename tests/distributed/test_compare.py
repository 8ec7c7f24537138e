"""A small grid through the public command: run, left alone, repaired, refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.launch import forked, megaokd, must
from tests.support.tiny import TinyWorld

COMPARE = ("-m", "megaokd.cli", "compare")


@pytest.mark.slow
def test_grid(tiny_world: TinyWorld, tmp_path: Path) -> None:
    recipe, folder = tmp_path / "recipe.yaml", tmp_path / "grid"
    values = grid(tiny_world, folder)
    # In the first call one method fails in every cell, and the others go on.
    shutil.copytree(tiny_world.teacher, tmp_path / "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    broken = {"method": "forward_kl", "teacher": {"path": str(tmp_path / "weightless")}}
    write(recipe, {**values, "methods": {"broken": broken, "okd": values["methods"]["okd"]}, "seeds": [0]})
    result = forked(0, *COMPARE, recipe)
    assert result.returncode == 1
    assert "broken, seed 0 failed" in result.stderr
    assert "broken, seed 0" in (folder / "report.md").read_text().partition("## Failed: ")[2]

    write(recipe, values)
    must(forked(0, *COMPARE, recipe))
    results = {
        (method, seed): folder / "cells" / method / f"seed-{seed}" / "result.json"
        for method in ("sft", "okd")
        for seed in (0, 1)
    }
    measured = {cell: json.loads(path.read_text()) for cell, path in results.items()}
    for seed in (0, 1):
        assert first_loss(results["sft", seed]) == pytest.approx(first_loss(results["okd", seed]), rel=1e-6)
    assert first_loss(results["sft", 0]) != first_loss(results["sft", 1])
    for (method, _), values_of_cell in measured.items():
        assert values_of_cell["steps"] == 3
        assert values_of_cell["evaluation"]["forward_kl"] > 0
        assert (values_of_cell["evaluation"]["adapted"] is not None) == (method == "okd")
    report = (folder / "report.md").read_text()
    mean = sum(measured["sft", seed]["evaluation"]["cross_entropy"] for seed in (0, 1)) / 2
    assert f"{mean:.4f} ±" in report
    assert "Failed" not in report
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(list((folder / "figures").glob("*.png"))) == 5

    before = {path: path.stat().st_mtime_ns for path in results.values()}
    log = results["okd", 1].parent / "log.jsonl"
    trained = log.read_bytes()
    shutil.rmtree(results["okd", 1].parent / "evaluation")
    must(forked(0, *COMPARE, recipe))
    after = {path: path.stat().st_mtime_ns for path in results.values()}
    assert {cell for cell, path in results.items() if before[path] != after[path]} == {("okd", 1)}
    assert log.read_bytes() == trained
    assert json.loads(results["okd", 1].read_text())["evaluation"]["cross_entropy"] == pytest.approx(
        measured["okd", 1]["evaluation"]["cross_entropy"]
    )

    # Entries that take time or teacher of others, added to a finished grid.
    values["methods"]["longer"] = {"like": "sft", "equal_time_of": "okd", "seeds": [0]}
    values["methods"]["static"] = {"method": "forward_kl", "adapted_teacher_of": "okd", "seeds": [0]}
    write(recipe, values)
    must(forked(0, *COMPARE, recipe))
    assert {path: path.stat().st_mtime_ns for path in results.values()} == after
    check_linked(folder / "cells")

    values["methods"]["okd"]["objective"] = {"temperature": 2.0}
    write(recipe, values)
    result = forked(0, *COMPARE, recipe)
    assert result.returncode == 2
    assert "okd, seed 0: the recipe has changed since this cell's training was done" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in results.values()} == after


def check_linked(cells: Path) -> None:
    """As many updates as the other's time is worth; the teacher that the other left, and the same first student."""
    longer, static, sft, okd = (cells / name / "seed-0" for name in ("longer", "static", "sft", "okd"))
    time = {cell: json.loads((cell / "result.json").read_text()) for cell in (sft, okd, longer)}
    ratio = time[okd]["training_seconds"] / time[sft]["training_seconds"]
    assert time[longer]["steps"] == max(1, round(3 * ratio))
    assert first_loss(static / "result.json") == pytest.approx(first_loss(okd / "result.json"), rel=1e-6)
    evaluation = json.loads((static / "result.json").read_text())["evaluation"]
    moved = json.loads((okd / "result.json").read_text())["evaluation"]
    # Both students are measured against the same moved teacher: once merged, once as an adapter.
    teacher = (evaluation["adapted"]["teacher_cross_entropy"], moved["adapted"]["teacher_cross_entropy"])
    assert teacher[0] == pytest.approx(teacher[1], rel=1e-5)
    assert teacher[0] != evaluation["teacher_cross_entropy"]


@pytest.mark.slow
def test_runs_of_two_processes(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """Cells under torchrun, a search before them, two sets of prompts; CPU seconds of both processes are counted."""
    values = grid(tiny_world, tmp_path / "grid")
    search = {"candidates": {"objective.student": [{"ce": 1.0}]}, "steps": 2}
    values["base"]["parallel"] = {"tensor": 2}
    sets = {"few": tmp_path / "few.jsonl", "more": tmp_path / "more.jsonl"}
    for count, file in enumerate(sets.values(), start=1):
        file.write_text('{"prompt": "one two", "references": ["three", "four"]}\n' * count)
    prompts = {name: str(file) for name, file in sets.items()}
    values["evaluation"] |= {"data": tiny_world.train, "tensor": 2, "prompts": prompts}
    values |= {"methods": {"sft": {"teacher": {"path": None}, "search": search}}, "seeds": [0], "processes": 2}
    write(tmp_path / "recipe.yaml", values | {"time": "cpu"})
    must(megaokd("compare", tmp_path / "recipe.yaml"))
    choice = json.loads((tmp_path / "grid" / "search" / "sft" / "choice.json").read_text())
    assert choice["trials"][0]["steps"] == 2
    assert choice["trials"][0]["value"] > 0
    cell = tmp_path / "grid" / "cells" / "sft" / "seed-0"
    summary, result = (json.loads((cell / name).read_text()) for name in ("summary.json", "result.json"))
    assert summary["processes"] == 2
    for count, name in enumerate(sets, start=1):
        assert result["evaluation"]["sets"][name]["generations"] == count
        assert len((cell / "evaluation" / f"generations.{name}.jsonl").read_text().splitlines()) == count
        assert f" ROUGE-L {name} " in (tmp_path / "grid" / "report.md").read_text()
    for command in ("train", "evaluate"):
        words = f"torchrun --standalone --nproc-per-node=2 -m megaokd.cli {command} "
        assert words in (cell / "output.txt").read_text()
    assert result["training_cpu_seconds"] == summary["training_cpu_seconds"] > 0


def grid(world: TinyWorld, folder: Path) -> dict[str, Any]:
    """Two methods, two seeds."""
    base = world.config(folder, train={"steps": 3, "validate_every": 2, "validation_batches": 1})
    del base["checkpoint"]
    base["logging"] = {"every": 1, "tensorboard": False}
    architecture = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_positions": 128}
    base["student"] = {"architecture": architecture}
    return {
        "folder": str(folder),
        "base": base,
        "methods": {"sft": {"method": "sft"}, "okd": {"method": "okd_lora"}},
        "seeds": [0, 1],
        "evaluation": {"data": world.validation, "generate": 2, "max_new_tokens": 4},
    }


def write(recipe: Path, values: dict[str, Any]) -> None:
    recipe.write_text(yaml.safe_dump(values, sort_keys=False))


def first_loss(result: Path) -> float:
    """The student's cross-entropy at the first step, before any update."""
    record = json.loads((result.parent / "log.jsonl").read_text().splitlines()[0])
    assert record["step"] == 1
    loss: float = record["train/student_ce"]
    return loss
