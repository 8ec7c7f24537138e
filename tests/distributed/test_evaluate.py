"""`megaokd evaluate` in several layouts gives what one process gives, through the command that a user types."""

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megaokd.data.dataset import TokenDataset
from tests.support.launch import forked, must, start_ranks, torchrun
from tests.support.tiny import TEACHER, TinyWorld, run

pytestmark = pytest.mark.slow

LAYOUTS = {"one": (1, 1), "dp3": (3, 1), "tp2_dp2": (4, 2)}
"""Processes, and how many of them a model is split over. 24 examples in 7 batches, 11 prompts in 1: uneven shares."""
MEASURES = ("cross_entropy", "forward_kl", "reverse_kl", "teacher_cross_entropy")


def save_adapter(folder: Path) -> Path:
    """An adapter of one column-parallel and one row-parallel matrix, as `peft` writes it."""
    folder.mkdir()
    draw = torch.Generator().manual_seed(0)
    width, inner = TEACHER["hidden_size"], TEACHER["intermediate_size"]
    shapes = {"mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner)}
    tensors = {}
    for name, (rows, columns) in shapes.items():
        place = f"base_model.model.model.layers.0.{name}"
        tensors[f"{place}.lora_A.weight"] = 0.3 * torch.randn(3, columns, generator=draw)
        tensors[f"{place}.lora_B.weight"] = 0.3 * torch.randn(rows, 3, generator=draw)
    save_file(tensors, folder / "adapter_model.safetensors")
    options = {"peft_type": "LORA", "r": 3, "lora_alpha": 6.0, "bias": "none", "target_modules": list(shapes)}
    (folder / "adapter_config.json").write_text(json.dumps(options))
    return folder


@pytest.fixture(scope="module")
def reports(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """(layout, number of sampling seeds) -> folder of the report."""
    root = tmp_path_factory.mktemp("evaluations")
    models = ["--model", tiny_world.student, "--teacher", tiny_world.teacher, "--data", tiny_world.validation]
    models += ["--adapted-teacher", str(save_adapter(root / "adapter")), "--max-batch-tokens", "250"]
    found = {}
    for layout, (processes, tensor) in LAYOUTS.items():
        for seeds in (0, 2) if layout in ("one", "tp2_dp2") else (2,):
            folder = root / f"{layout}_{seeds}"
            options = ["--generate", "11", "--seeds", str(seeds), "--max-new-tokens", "9", "--tensor", str(tensor)]
            launch = torchrun if layout == "dp3" else forked  # once as a user starts it
            must(launch(processes, "-m", "megaokd.cli", "evaluate", *models, *options, "--output", folder))
            found[layout, seeds] = folder
    return found


def values(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "evaluation.json").read_text())
    return result


@pytest.mark.parametrize("layout", ["dp3", "tp2_dp2"])
def test_measures_are_those_of_one_process(layout: str, reports: dict[tuple[str, int], Path]) -> None:
    found, expected = values(reports[layout, 2]), values(reports["one", 2])
    assert (found["tokens"], found["parameters"]) == (expected["tokens"], expected["parameters"])
    for name in MEASURES:
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name
        assert found["adapted"][name] == pytest.approx(expected["adapted"][name], rel=1e-6), name
    assert found["adapted"]["forward_kl"] != pytest.approx(found["forward_kl"], rel=1e-2)
    # Shares of tokens: rounding may move one that stands at a border.
    for name in ("top1_agreement", "calibration_error"):
        assert found[name] == pytest.approx(expected[name], abs=1.5 / found["tokens"]), name


@pytest.mark.parametrize(("layout", "seeds"), [("dp3", 2), ("tp2_dp2", 2), ("tp2_dp2", 0)])
def test_generations_are_those_of_one_process(layout: str, seeds: int, reports: dict[tuple[str, int], Path]) -> None:
    found, expected = (
        (reports[name, seeds] / "generations.jsonl").read_text().splitlines() for name in (layout, "one")
    )
    assert len(found) == 11 * max(1, seeds)
    assert found == expected
    assert values(reports[layout, seeds])["rouge_l"] == values(reports["one", seeds])["rouge_l"]
    assert "# Evaluation of" in (reports[layout, seeds] / "evaluation.md").read_text()


def test_responses_are_those_of_one_process_and_become_data(tiny_world: TinyWorld, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    lines = (tiny_world.root / "validation.jsonl").read_text().splitlines(keepends=True)[:11]
    prompts.write_text("".join(lines))
    for name, (processes, tensor) in {"one": (1, 1), "tp2_dp2": (4, 2)}.items():
        files = ["--model", tiny_world.teacher, "--prompts", prompts, "--output", tmp_path / f"{name}.jsonl"]
        options = ["--max-new-tokens", "9", "--batch", "2", "--seed", "3", "--tensor", tensor]
        must(forked(processes, "-m", "megaokd.cli", "generate", *files, *options))
    found = (tmp_path / "tp2_dp2.jsonl").read_text()
    assert found == (tmp_path / "one.jsonl").read_text()
    assert [json.loads(line)["prompt"] for line in found.splitlines()] == [json.loads(line)["prompt"] for line in lines]
    data = tmp_path / "data"
    run("preprocess", "--input", tmp_path / "one.jsonl", "--tokenizer", tiny_world.teacher, "--output", data)
    assert len(TokenDataset(data)) == len(lines)


def test_sigterm_ends_an_evaluation(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """At once, in the middle of what may take hours, with no result; the rank that is left ends by itself."""
    program, report = tmp_path / "endless.py", tmp_path / "report"
    program.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from megaokd.evaluation import evaluate\n"
        "from megaokd.tools.evaluate import main\n"
        "measure = evaluate.measure_tokens\n"
        "def measure_again_and_again(*arguments, **options):\n"
        "    Path(__file__).with_name('rank' + os.environ['RANK']).touch()\n"
        "    while True:\n"
        "        measure(*arguments, **options)\n"
        "evaluate.measure_tokens = measure_again_and_again\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    ranks = start_ranks(2, program, "--model", tiny_world.student, "--data", tiny_world.validation, "--output", report)
    try:
        deadline = time.monotonic() + 120
        while not all((tmp_path / f"rank{rank}").exists() for rank in range(2)) and time.monotonic() < deadline:
            time.sleep(0.05)
        ranks[1].send_signal(signal.SIGTERM)
        assert ranks[1].wait(30) == -signal.SIGTERM
        _, words = ranks[0].communicate(timeout=60)
        assert ranks[0].returncode == 1
        assert "rank 1" in words
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    assert not report.exists()
