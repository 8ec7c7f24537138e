"""The loss on logits: ours, the dense formula, the compiler, other libraries."""

from collections.abc import Callable

import torch
from torch import Tensor

from megaokd.benchmark.dense import dense_forward_kl, dense_joint, floor
from megaokd.benchmark.measure import Call, Row, agreeing, measure
from megaokd.benchmark.peers import load_peers
from megaokd.benchmark.problem import OBJECTIVES, TOLERANCE, Expected, Problem, check, expect
from megaokd.kernels import distillation_loss


def ours(problem: Problem, objective: str) -> Call:
    """`distillation_loss` and its gradients."""
    student_terms, teacher_terms = OBJECTIVES[objective]

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        s, t = problem.student, problem.teacher if teacher_terms else problem.teacher.detach()
        out = distillation_loss(s, t, problem.labels, student=student_terms, teacher=teacher_terms)
        total = out.student_loss.sum() + out.teacher_loss.sum()
        return total.detach(), torch.autograd.grad(total, (s, t) if teacher_terms else (s,))

    return call


def _student_only(problem: Problem, loss: Callable[..., Tensor]) -> Call:
    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        total = loss(problem.student, problem.teacher.detach(), problem.labels)
        return total.detach(), torch.autograd.grad(total, (problem.student,))

    return call


def _both(problem: Problem, loss: Callable[..., Tensor]) -> Call:
    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        inputs = (problem.student, problem.teacher)
        total = loss(*inputs, problem.labels)
        return total.detach(), torch.autograd.grad(total, inputs)

    return call


def measure_logits(
    num_tokens: int, vocab: int, dtype: torch.dtype, device: torch.device, repetitions: int
) -> tuple[dict[str, list[Row]], Row, Row, dict[str, str]]:
    """Rows by objective, ours first; the floor; a copy of one model's logits; absent peers.

    Rows that disagree are not measured.
    """
    problem = Problem.create(num_tokens, vocab, dtype, device)

    def forward_kl(student: Tensor, teacher: Tensor, _: Tensor) -> Tensor:
        return dense_forward_kl(student, teacher)

    rows = {
        "both": [
            Row("MegaOKD", ours(problem, "both")),
            Row("dense torch formula", _both(problem, dense_joint)),
            Row("torch.compile of it", _both(problem, torch.compile(dense_joint))),
        ],
        "student": [
            Row("MegaOKD", ours(problem, "student")),
            Row("dense torch formula", _student_only(problem, forward_kl)),
            Row("torch.compile of it", _student_only(problem, torch.compile(forward_kl))),
        ],
        "jsd": [Row("MegaOKD", ours(problem, "jsd"))],
    }
    present, absent = load_peers()
    with_entropy = {peer.name for peer, _ in present if peer.adds_entropy}
    for peer, loss in present:
        rows[peer.objective].append(Row(peer.name, _student_only(problem, loss)))
    for objective, group in rows.items():
        _check_all(group, expect(problem, objective), with_entropy, TOLERANCE[dtype])
    lowest = Row("floor", _floor(problem))
    copied = Row("copy", _copy(problem))
    measure([lowest, copied, *agreeing([row for group in rows.values() for row in group])], repetitions, device)
    return rows, lowest, copied, absent


def _floor(problem: Problem) -> Call:
    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        floor(problem.student, problem.teacher)
        return problem.labels, ()

    return call


def _copy(problem: Problem) -> Call:
    source = problem.student.detach()
    target = torch.empty_like(source)

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        target.copy_(source)
        return problem.labels, ()

    return call


def _check_all(rows: list[Row], expected: Expected, with_entropy: set[str], tolerance: float) -> None:
    for row in rows:
        check(row, expected, tolerance, offset=expected.teacher_entropy if row.name in with_entropy else 0.0)
