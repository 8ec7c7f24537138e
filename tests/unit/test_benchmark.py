"""The benchmark's gate: a row that is wrong gets no ratio; what cannot be imported is named."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megaokd.benchmark import peers
from megaokd.benchmark.allocator import allocator_setting, measuring_command
from megaokd.benchmark.dense import dense_joint
from megaokd.benchmark.logits import by_autograd, ours
from megaokd.benchmark.measure import Call, Row, agreeing, measure, peak_bytes
from megaokd.benchmark.problem import Problem, check, expect
from megaokd.benchmark.report import Report, Table, Traffic

CPU = torch.device("cpu")


def _dense(problem: Problem, change: Callable[[Tensor], Tensor]) -> Call:
    return by_autograd(problem, "both", lambda *inputs: change(dense_joint(*inputs)))


def test_a_row_that_disagrees_is_not_measured() -> None:
    problem = Problem.create(5, 37, torch.float32, CPU)
    expected = expect(problem, "both")
    rows = [
        Row("ours", ours(problem, "both")),
        Row("dense", _dense(problem, lambda total: total)),
        Row("other value", _dense(problem, lambda total: total + 1)),
        Row("other gradient", _dense(problem, lambda total: 2 * total - total.detach())),
    ]
    for row in rows:
        check(row, expected, 2e-5)
    assert [bool(row.refused) for row in rows] == [False, False, True, True]
    measure(agreeing(rows), 2, CPU)
    lines = Report("command", {}, [Table("title", rows, logit_bytes=5 * 37 * 4)]).markdown().splitlines()
    wrong = [line for line in lines if line.startswith("| other")]
    assert len(wrong) == 2
    assert all("disagrees" in line and " ms" not in line for line in wrong)
    assert any(line.startswith("| dense | ") and "disagrees" not in line for line in lines)


def test_speed_is_a_share_of_a_copy() -> None:
    def nothing() -> tuple[Tensor, tuple[Tensor, ...]]:
        return torch.zeros(()), ()

    copy, ours_row = Row("copy", nothing, seconds=[2.0]), Row("ours", nothing, seconds=[4.0])
    traffic = Traffic(call_bytes=6 * 10**9, copy=copy, copy_bytes=4 * 10**9)
    table = Table("title", [ours_row], logit_bytes=10**9, traffic=traffic)
    lines = Report("command", {}, [table]).markdown().splitlines()
    # 4 GB in 2 s are 2 GB/s; 6 GB in 4 s are 1.5.
    assert any("| GB/s | of a copy's 2 |" in line for line in lines)
    assert any(line.startswith("| ours |") and line.endswith("| 2 | 75% |") for line in lines)


def test_an_added_entropy_is_accounted_for() -> None:
    """torchtune's value is a cross-entropy of the two models: the divergence plus the teacher's entropy."""
    problem = Problem.create(5, 37, torch.float32, CPU)
    expected = expect(problem, "student")

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        p = problem.teacher.detach().softmax(-1)
        total = -(p * problem.student.log_softmax(-1)).sum()
        return total.detach(), torch.autograd.grad(total, (problem.student,))

    row = Row("cross-entropy", call)
    check(row, expected, 2e-5)
    assert row.refused
    check(row, expected, 2e-5, offset=expected.teacher_entropy)
    assert not row.refused


def test_peak_counts_what_was_given_back() -> None:
    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        first = torch.ones(1000)
        second = first + 1
        return second, (second,)

    assert 4000 <= peak_bytes(call, CPU) < 4100  # and a scalar or two


def test_absent_peers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> peers.Loss:
        raise ImportError("please install it") from ModuleNotFoundError("nothing here\nnor here")

    monkeypatch.setattr(peers, "PEERS", (peers.Peer("somebody", "nothing", "student", fail),))
    present, absent = peers.load_peers()
    assert not present
    assert absent["somebody"] == "ModuleNotFoundError: nothing here"


def test_a_page_repeats_the_setting_of_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--output", "two words"]
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE", raising=False)
    assert allocator_setting() == "THP_MEM_ALLOC_ENABLE=unset"
    assert measuring_command("loss", arguments) == "megaokd benchmark loss --output 'two words'"
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    assert allocator_setting() == "THP_MEM_ALLOC_ENABLE=1"
    assert measuring_command("loss", arguments) == (
        "THP_MEM_ALLOC_ENABLE=1 megaokd benchmark loss --output 'two words'"
    )
