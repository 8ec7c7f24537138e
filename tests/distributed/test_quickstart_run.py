"""The quickstart's whole path, shrunk, through its public commands."""

import json
from pathlib import Path

import pytest

from tests.support.launch import megaokd, must


@pytest.mark.slow
def test_smoke(tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"
    result = must(megaokd("quickstart", "--smoke", "--folder", folder))
    results = json.loads((folder / "results.json").read_text())
    assert results
    table = (folder / "results.md").read_text()
    for method in ("supervised only", "distillation", "online distillation"):
        assert method in table
    assert "The exported student gives the trained student's logits" in result.stdout
    assert "tensorboard --logdir" in result.stdout
    assert "the numbers mean nothing" in table
    methods = ("sft", "distillation", "okd")
    first = {method: first_loss(folder / method / "log.jsonl") for method in methods}
    assert len(set(first.values())) == 1, f"the students did not start from the same weights and batch: {first}"


def first_loss(log: Path) -> float:
    """The student's cross-entropy at the first step, before any update."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    record = next(record for record in records if record["kind"] == "train")
    assert record["step"] == 1
    loss: float = record["train/student_ce"]
    return loss
