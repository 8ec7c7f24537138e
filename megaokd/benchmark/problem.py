"""The inputs that all rows share, what they should give, and how near is near enough."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megaokd.benchmark.measure import Gradients, Row
from megaokd.kernels import Term
from megaokd.kernels.reference import reference_loss

CHUNK = 128  # tokens of the fp64 reference at a time
# Relative to the largest gradient. bf16: what rounding the result and the formula's bf16 intermediates may cost.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}

OKD = ([Term("ce", 1.0), Term("forward_kl", 1.0)], [Term("ce", 1.0), Term("forward_kl", 0.1)])
FORWARD_KL: tuple[list[Term], list[Term]] = ([Term("forward_kl", 1.0)], [])
JSD: tuple[list[Term], list[Term]] = ([Term("jsd", 1.0)], [])
OBJECTIVES = {"both": OKD, "student": FORWARD_KL, "jsd": JSD}


@dataclass
class Problem:
    """Logits [N, V] of both models, which ask for gradients, and labels [N]."""

    student: Tensor
    teacher: Tensor
    labels: Tensor

    @classmethod
    def create(cls, num_tokens: int, vocab: int, dtype: torch.dtype, device: torch.device) -> "Problem":
        """A student that resembles its teacher; every token has a label."""
        generator = torch.Generator().manual_seed(0)
        teacher = 2 * torch.randn(num_tokens, vocab, generator=generator)
        student = 0.7 * teacher + torch.randn(num_tokens, vocab, generator=generator)
        labels = torch.randint(0, vocab, (num_tokens,), generator=generator)
        student, teacher = (x.to(device, dtype).requires_grad_() for x in (student, teacher))
        return cls(student, teacher, labels.to(device))


@dataclass
class Expected:
    """Summed loss of the whole problem; gradients, of logits those of the first `CHUNK` tokens."""

    total: float
    gradients: Gradients
    teacher_entropy: float = 0.0


def expect(problem: Problem, objective: str) -> Expected:
    """From the fp64 reference, some tokens at a time."""
    student_terms, teacher_terms = OBJECTIVES[objective]
    total = entropy = 0.0
    first: Gradients = ()
    for start in range(0, len(problem.labels), CHUNK):
        rows = slice(start, start + CHUNK)
        s, t = (x[rows].detach().double().requires_grad_() for x in (problem.student, problem.teacher))
        losses = reference_loss(s, t, problem.labels[rows], student=student_terms, teacher=teacher_terms)
        summed = losses[0].sum() + losses[1].sum()
        total += float(summed.detach())
        log_p = t.detach().log_softmax(-1)
        entropy -= float((log_p.exp() * log_p).sum())
        if start == 0:
            first = torch.autograd.grad(summed, (s, t) if teacher_terms else (s,))
    return Expected(total, first, entropy)


def check(row: Row, expected: Expected, tolerance: float, *, offset: float = 0.0) -> None:
    """Sets `refused` where the row's values or gradients are not those of the reference.

    offset  what the row's value has beyond the loss: some leave the teacher's entropy in
    """
    total, gradients = row.call()
    scale = abs(expected.total) + abs(offset)
    problems = []
    if not abs(float(total) - offset - expected.total) <= tolerance * scale:
        problems.append(f"value {float(total):.6g} instead of {expected.total + offset:.6g}")
    for ours, exact in zip(gradients, expected.gradients, strict=True):
        error = float((ours[: len(exact)].double() - exact).abs().max() / exact.abs().max())
        if not error <= tolerance:
            problems.append(f"a gradient {error:.1e} off, relative to the largest")
    row.refused = "; ".join(problems)
