"""The benchmark of a step: who disagrees gets no ratio, targets are judged, phases add up to the step."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from megaokd.benchmark.step.contenders import (
    CACHED,
    EIGHTH,
    PLAIN,
    QUARTER,
    TRL,
    USER,
    USER_PLAIN,
    compare_values,
    contenders,
    our_variants,
)
from megaokd.benchmark.step.ours import Variant
from megaokd.benchmark.step.phases import PHASES
from megaokd.benchmark.step.report import write_report
from megaokd.benchmark.step.results import summarize, targets
from megaokd.benchmark.step.user_loop import gradient_norm
from megaokd.benchmark.step.worker import Contender, Measured, Worker
from megaokd.benchmark.step.world import ModelSize, Pair, World, build_world, llama_config
from megaokd.benchmark.step_command import main
from megaokd.errors import UserError

TINY = Pair(ModelSize(4, 64), ModelSize(2, 64), vocab=37, sequence=16, global_batch=4, micro_batch=2)


def contender(name: str, *losses: float, seconds: float = 1.0) -> Contender:
    steps = [
        Measured(seconds, {"student_loss": loss, "forward_kl": 0.5, "norm of student": 2.0}, {}) for loss in losses
    ]
    return Contender(name, "module:name", {}, steps=steps)


def test_who_disagrees_is_refused() -> None:
    cases = [
        contender(PLAIN, 1.0, 3.0),
        contender(EIGHTH, 1.0 + 1e-6, 9.0),  # its modules move in the second step
        contender(CACHED, 1.0 + 1e-6, 9.0 + 1e-12),
        contender(USER_PLAIN, 1.1, 3.0),
        contender(TRL, 1.1, 3.0),  # only the divergence is compared
    ]
    compare_values({case.name: case for case in cases})
    assert [bool(case.refused) for case in cases] == [False, False, True, True, False]
    assert "student_loss is 1.1 instead of 1" in cases[3].refused


def test_chosen_rows_come_with_what_they_are_compared_with(tmp_path: Path) -> None:
    world, variants = World(TINY, tmp_path), our_variants(4)
    chosen = contenders(world, variants, peers=True, clock="cpu", rows=[USER])
    assert [one.name for one in chosen] == [PLAIN, QUARTER, USER]
    assert {one.clock for one in chosen} == {"cpu"}
    assert len(contenders(world, variants, peers=True)) == len(variants) + 3
    with pytest.raises(UserError, match="no row is called 'peft'; there are 'labels only', "):
        contenders(world, variants, peers=True, rows=["peft"])


def test_targets() -> None:
    def row(median: float, flops: int, data: float = 0.0) -> dict[str, Any]:
        return {"median": median, "flops": flops, "tensor_bytes": 100, "process_bytes": 100, "phases": {"data": data}}

    plain = {**row(2.0, 100), "least_seconds": 1.6, "least_bytes": 60}
    rows = {
        PLAIN: plain,
        USER_PLAIN: {"median": 2.4, "tensor_bytes": 120, "process_bytes": 100},
        EIGHTH: row(2.4, 120, data=0.024),
        CACHED: row(1.1, 40),
        TRL: {"refused": "no"},
    }
    found = {one["text"]: (one["value"], one["met"]) for one in targets(rows, reference=True)}
    assert found == {
        "time of OKD, top eighth / plain distillation, over the ratio of FLOPs": (pytest.approx(1.0), True),
        "time of OKD, top eighth / plain distillation": (pytest.approx(1.2), True),
        "time of OKD, top eighth, cached / plain distillation": (pytest.approx(0.55), False),
        "tokens/s of plain distillation / transformers, plain distillation": (pytest.approx(1.2), False),
        "peak of tensors of plain distillation / transformers, plain distillation": (pytest.approx(100 / 120), False),
        "peak memory of the process of plain distillation / transformers, plain distillation": (1.0, False),
        "data's largest share of a step": (pytest.approx(0.01), True),
    }
    assert [one["best"] for one in targets(rows, reference=True) if "best" in one] == [pytest.approx(1.5), 0.5]
    elsewhere = {one["text"] for one in targets(rows, reference=False)}
    assert set(found) - elsewhere == {
        "time of OKD, top eighth / plain distillation",
        "time of OKD, top eighth, cached / plain distillation",
    }


def test_the_reference_pair() -> None:
    assert Pair(global_batch=4).is_reference
    assert not Pair(vocab=32000).is_reference


def test_a_user_s_norms_are_compared_as_exactly_as_ours() -> None:
    """Of a large head's gradient torch's own sum, in fp32, is off by 1e-4."""
    weight = nn.Parameter(torch.zeros(6_000_000))
    weight.grad = torch.full_like(weight, 1e-3)
    weight.grad[::2] = 3e-3
    assert gradient_norm([weight]) == pytest.approx(math.sqrt(3e6 * (1e-6 + 9e-6)), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--vocab", "7"], "--vocab 7: heads of fewer than 16 tokens"),
        (["--teacher", "2", "100"], "--teacher: a width of 100 is not a multiple of 64"),
        (["--batch", "4", "--micro-batch", "3"], "--batch 4 is not a multiple of --micro-batch 3"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    options: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*options, "--output", str(tmp_path)])
    assert sentence in capsys.readouterr().err


def test_parameters_are_those_of_the_model() -> None:
    size, vocab = ModelSize(3, 128), 37
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(size, vocab, positions=16))
    assert size.parameters(vocab) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.slow
def test_a_comparison_of_two_steps(tmp_path: Path) -> None:
    world: World = build_world(TINY, tmp_path, 2)
    variants = [Variant(PLAIN), Variant(EIGHTH, online_layers=1)]
    found = {one.name: one for one in contenders(world, variants, peers=False)}
    for one in found.values():
        with Worker(one) as worker:
            assert worker.ready() == ""
            for step in range(3):
                worker.begin(step)
                worker.finish()
            worker.measure_memory(3)
            worker.measure_operators(4)
    compare_values(found)
    result = summarize(world, variants, found, [1e9])
    for one in found.values():
        assert not one.refused
        assert one.process_bytes > 0
        assert sum(one.operators.values()) == pytest.approx(1.0)
        assert min(one.operators.values()) > 0
        # At the least both models' embeddings and heads; DeepSpeed's own buffer would be 2 GB.
        assert 4 * TINY.vocab * 64 * 4 < one.tensor_bytes < 5e7
        for step in one.steps:
            assert sum(step.phases.values()) == pytest.approx(step.seconds, rel=0.1, abs=1e-3)
            busy = {phase for phase in PHASES if step.phases[phase] > 0}
            assert busy == set(PHASES) - ({"teacher backward"} if one.name == PLAIN else set())
    tokens = TINY.global_batch * TINY.sequence
    assert result["input_tokens"] == tokens
    comparison = {"vocab": TINY.vocab, "command": "megaokd", "environment": {}, **result}
    write_report(tmp_path, comparison)
    page = write_report(tmp_path, comparison)
    assert page.startswith(f"# Time and memory of a training step, vocabulary {TINY.vocab}\n")
    assert page.count("## ") == 1
    assert len(json.loads((tmp_path / f"step_vocab_{TINY.vocab}.json").read_text())) == 1
    write_report(tmp_path, {**comparison, "vocab": Pair().vocab})
    assert (tmp_path / "step.md").read_text().startswith("# Time and memory of a training step\n")
    assert f"| {EIGHTH} " in page


@pytest.mark.slow
def test_what_cannot_be_built_is_named(tmp_path: Path) -> None:
    missing = Contender("peer", "megaokd.benchmark.step.user_loop:UserLoop", {}, libraries=["no_such_library"])
    with Worker(missing) as worker:
        assert worker.ready() == "ModuleNotFoundError: No module named 'no_such_library'"
