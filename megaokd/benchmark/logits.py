"""The loss on logits: ours, the dense formula, the compiler, other libraries."""

from typing import Any

import torch
from torch import Tensor

from megaokd.benchmark.dense import dense_forward_kl, dense_joint, floor
from megaokd.benchmark.measure import Call, Gradients, Row, agreeing, measure
from megaokd.benchmark.peers import Loss, load_peers
from megaokd.benchmark.problem import OBJECTIVES, TOLERANCE, Expected, Problem, check, expect
from megaokd.kernels import distillation_loss


def by_autograd(problem: Problem, objective: str, loss: Loss) -> Call:
    """A loss and the gradients that the objective asks for; a teacher without terms is frozen."""
    trains_teacher = bool(OBJECTIVES[objective][1])
    teacher = problem.teacher if trains_teacher else problem.teacher.detach()
    wanted = (problem.student, teacher) if trains_teacher else (problem.student,)

    def call() -> tuple[Tensor, Gradients]:
        total = loss(problem.student, teacher, problem.labels)
        return total.detach(), torch.autograd.grad(total, wanted)

    return call


def ours(problem: Problem, objective: str, **options: Any) -> Call:
    """`distillation_loss` and its gradients, while its metrics are kept; options say how a vocabulary is split."""
    student_terms, teacher_terms = OBJECTIVES[objective]

    def call() -> tuple[Tensor, Gradients]:
        s, t = problem.student, problem.teacher if teacher_terms else problem.teacher.detach()
        out = distillation_loss(s, t, problem.labels, student=student_terms, teacher=teacher_terms, **options)
        total = out.student_loss.sum() + out.teacher_loss.sum()
        return total.detach(), torch.autograd.grad(total, (s, t) if teacher_terms else (s,))

    return call


def measure_logits(
    num_tokens: int, vocab: int, dtype: torch.dtype, device: torch.device, repetitions: int
) -> tuple[dict[str, list[Row]], Row, Row, dict[str, str]]:
    """Rows by objective, ours first; the floor; a copy of one model's logits; absent peers.

    Rows that disagree are not measured.
    """
    problem = Problem.create(num_tokens, vocab, dtype, device)

    rows = {
        "both": [
            Row("MegaOKD", ours(problem, "both")),
            Row("dense torch formula", by_autograd(problem, "both", dense_joint)),
            Row("torch.compile of it", by_autograd(problem, "both", torch.compile(dense_joint))),
        ],
        "student": [
            Row("MegaOKD", ours(problem, "student")),
            Row("dense torch formula", by_autograd(problem, "student", dense_forward_kl)),
            Row("torch.compile of it", by_autograd(problem, "student", torch.compile(dense_forward_kl))),
        ],
        "jsd": [Row("MegaOKD", ours(problem, "jsd"))],
    }
    present, absent = load_peers()
    with_entropy = {peer.name for peer, _ in present if peer.adds_entropy}
    for peer, loss in present:
        rows[peer.objective].append(Row(peer.name, by_autograd(problem, peer.objective, loss)))
    for objective, group in rows.items():
        _check_all(group, expect(problem, objective), with_entropy, TOLERANCE[dtype])
    lowest = Row("floor", _floor(problem))
    copied = Row("copy", _copy(problem))
    measure([lowest, copied, *agreeing([row for group in rows.values() for row in group])], repetitions, device)
    return rows, lowest, copied, absent


def _floor(problem: Problem) -> Call:
    def call() -> tuple[Tensor, Gradients]:
        floor(problem.student, problem.teacher)
        return problem.labels, ()

    return call


def _copy(problem: Problem) -> Call:
    source = problem.student.detach()
    target = torch.empty_like(source)

    def call() -> tuple[Tensor, Gradients]:
        target.copy_(source)
        return problem.labels, ()

    return call


def _check_all(rows: list[Row], expected: Expected, with_entropy: set[str], tolerance: float) -> None:
    for row in rows:
        check(row, expected, tolerance, offset=expected.teacher_entropy if row.name in with_entropy else 0.0)
