"""Heads and loss: `linear_distillation_loss` against both heads' whole logits and `distillation_loss` on them."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megaokd.benchmark.dense import dense_joint
from megaokd.benchmark.measure import Call, Gradients, Row, agreeing, measure
from megaokd.benchmark.problem import OKD, Expected, check
from megaokd.kernels import distillation_loss, linear_distillation_loss

HIDDEN = 512
TOLERANCE = 1e-4  # relative to the loss and to the largest gradient, against fp32 autograd of the dense formula


@dataclass
class HeadProblem:
    """Hidden states [N, D] and this rank's rows [V_local, D] of both heads; the teacher's is frozen."""

    hidden: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]
    labels: Tensor
    first: int
    vocab: int
    group: dist.ProcessGroup | None

    @classmethod
    def create(
        cls, num_tokens: int, vocab: int, device: torch.device, group: dist.ProcessGroup | None
    ) -> "HeadProblem":
        """The same numbers on every rank, of which each keeps its rows."""
        generator = torch.Generator().manual_seed(1)
        hidden = [torch.randn(num_tokens, HIDDEN, generator=generator).to(device) for _ in range(2)]
        whole = [torch.randn(vocab, HIDDEN, generator=generator).mul_(0.1).to(device) for _ in range(2)]
        labels = torch.randint(0, vocab, (num_tokens,), generator=generator).to(device)
        ranks, rank = (1, 0) if group is None else (dist.get_world_size(group), dist.get_rank(group))
        first, last = vocab * rank // ranks, vocab * (rank + 1) // ranks
        s, t = (x[first:last].clone() for x in whole)
        states = hidden[0].requires_grad_(), hidden[1].requires_grad_()
        return cls(states, (s.requires_grad_(), t), labels, first, vocab, group)

    @property
    def wanted(self) -> Gradients:
        """What gets a gradient."""
        return (self.hidden[0], self.weights[0], self.hidden[1])

    @property
    def options(self) -> dict[str, Any]:
        """What both forms are told besides tensors."""
        return {
            "student": OKD[0],
            "teacher": OKD[1],
            "group": self.group,
            "vocab_start": self.first,
            "vocab_size": self.vocab,
        }


def fused(problem: HeadProblem) -> Call:
    """`linear_distillation_loss` and its gradients."""

    def call() -> tuple[Tensor, Gradients]:
        out = linear_distillation_loss(
            *(problem.hidden[0], problem.weights[0], problem.hidden[1], problem.weights[1], problem.labels),
            **problem.options,
        )
        total = out.student_loss + out.teacher_loss
        return total.detach(), torch.autograd.grad(total, problem.wanted)

    return call


def unfused(problem: HeadProblem) -> Call:
    """Both products, `distillation_loss`, gradients, and the sum of the hidden gradients over the group."""

    def call() -> tuple[Tensor, Gradients]:
        logits = [x @ w.t() for x, w in zip(problem.hidden, problem.weights, strict=True)]
        out = distillation_loss(logits[0], logits[1], problem.labels, **problem.options)
        del logits
        total = out.student_loss.sum() + out.teacher_loss.sum()
        gradients = torch.autograd.grad(total, problem.wanted)
        if problem.group is not None:
            for hidden in (gradients[0], gradients[2]):
                dist.all_reduce(hidden, group=problem.group)
        return total.detach(), gradients

    return call


def measure_fused(
    num_tokens: int, vocab: int, device: torch.device, group: dist.ProcessGroup | None, repetitions: int
) -> list[Row]:
    """Both forms, the unfused one second; the all-reduce of both hidden gradients is inside."""
    problem = HeadProblem.create(num_tokens, vocab, device, group)
    rows = [Row("MegaOKD, fused", fused(problem)), Row("MegaOKD on whole logits", unfused(problem))]
    expected = _expected(HeadProblem.create(num_tokens, vocab, device, None), problem)
    for row in rows:
        check(row, expected, TOLERANCE)
    measure(agreeing(rows, group), repetitions, device, group)
    return rows


def _expected(whole: HeadProblem, mine: HeadProblem) -> Expected:
    """By autograd through the dense formula on unsharded heads; of the head's gradient this rank's rows."""
    logits = [x @ w.t() for x, w in zip(whole.hidden, whole.weights, strict=True)]
    total = dense_joint(logits[0], logits[1], whole.labels)
    hidden, weight, teacher_hidden = torch.autograd.grad(total, whole.wanted)
    rows = slice(mine.first, mine.first + len(mine.weights[0]))
    return Expected(float(total.detach()), (hidden, weight[rows].clone(), teacher_hidden))
