"""Inputs and comparisons that the tests of the loss share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megaokd.kernels import DistillationOutput, Term, distillation_loss
from megaokd.kernels.reference import reference_loss

MIXES: dict[str, tuple[list[Term], list[Term]]] = {
    "ce": ([Term("ce", 1.0)], [Term("ce", 0.5)]),
    "forward_kl": ([Term("forward_kl", 1.0)], [Term("forward_kl", 0.1)]),
    "reverse_kl": ([Term("reverse_kl", 0.7)], [Term("reverse_kl", 1.0)]),
    "jsd": ([Term("jsd", 1.0, beta=0.3)], [Term("jsd", 1.0, beta=0.3)]),
    "skew_forward_kl": ([Term("skew_forward_kl", 1.0)], [Term("skew_forward_kl", 2.0)]),
    "skew_reverse_kl": ([Term("skew_reverse_kl", 1.0, alpha=0.4)], [Term("skew_reverse_kl", 1.0, alpha=0.4)]),
    "tvd": ([Term("tvd", 1.0)], [Term("tvd", 0.3)]),
    "joint": ([Term("ce", 1.0), Term("forward_kl", 0.5)], [Term("ce", 1.0), Term("forward_kl", 0.1)]),
    "crossed": ([Term("forward_kl", 1.0)], [Term("ce", 0.2), Term("reverse_kl", 0.3)]),
    "everything": (
        [Term("ce", 0.5), Term("forward_kl", 0.25), Term("jsd", 1.0), Term("jsd", 0.5, beta=0.9), Term("tvd", 0.1)],
        [Term("reverse_kl", 0.25), Term("skew_reverse_kl", 1.0), Term("skew_forward_kl", 0.5, alpha=0.7)],
    ),
}
# What backend "eager" alone has; of the joint one a set is cut by every split, and the other is one token.
EAGER_MIXES = MIXES | {
    "top": ([Term("forward_kl_top", 1.0, top=7)], [Term("forward_kl_top", 0.4, top=7)]),
    "top_joint": (
        [Term("ce", 0.5), Term("forward_kl_top", 1.0, top=40), Term("tvd", 0.1), Term("forward_kl_top", 0.5, top=1)],
        [Term("forward_kl_top", 0.3, top=40), Term("jsd", 0.2), Term("reverse_kl", 0.1)],
    ),
}


@dataclass
class Example:
    """Whole logits [N, V], labels [N] and upstream gradients of both losses [N]."""

    student: Tensor
    teacher: Tensor
    labels: Tensor
    student_upstream: Tensor
    teacher_upstream: Tensor


def make_example(
    num_tokens: int,
    vocab: int,
    *,
    seed: int = 0,
    scale: float = 2.0,
    offset: float = 0.0,
    ignored: Sequence[int] = (1,),
) -> Example:
    """Random fp64 logits; a student that resembles its teacher, labels on both edges of the vocabulary."""
    generator = torch.Generator().manual_seed(seed)
    teacher = scale * torch.randn(num_tokens, vocab, generator=generator, dtype=torch.float64)
    student = 0.7 * teacher + 0.5 * scale * torch.randn(num_tokens, vocab, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, vocab, (num_tokens,), generator=generator)
    labels[0], labels[-1] = 0, vocab - 1
    labels[[index for index in ignored if index < num_tokens]] = -100
    upstream = torch.rand(2, num_tokens, generator=generator, dtype=torch.float64) + 0.5
    return Example(student + offset, teacher + offset, labels, upstream[0], upstream[1])


@dataclass
class Expected:
    """What the fp64 reference says."""

    student_loss: Tensor
    teacher_loss: Tensor
    student_grad: Tensor
    teacher_grad: Tensor


def expect(example: Example, mix: str, temperature: float) -> Expected:
    """Reference losses and gradients by autograd, in fp64."""
    student = example.student.double().detach().requires_grad_()
    teacher = example.teacher.double().detach().requires_grad_()
    terms = EAGER_MIXES[mix]
    losses = reference_loss(
        student, teacher, example.labels, student=terms[0], teacher=terms[1], temperature=temperature
    )
    total = (losses[0] * example.student_upstream).sum() + (losses[1] * example.teacher_upstream).sum()
    grads = torch.autograd.grad(total, (student, teacher))
    return Expected(losses[0].detach(), losses[1].detach(), grads[0], grads[1])


def mixed_loss(mix: str, student: Tensor, teacher: Tensor, labels: Tensor, **options: Any) -> DistillationOutput:
    """`distillation_loss` with the terms of a mix."""
    terms = EAGER_MIXES[mix]
    return distillation_loss(student, teacher, labels, student=terms[0], teacher=terms[1], **options)


def backward(out: DistillationOutput, example: Example, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of both losses under the example's upstream gradients."""
    upstream = [example.student_upstream.to(out.student_loss), example.teacher_upstream.to(out.student_loss)]
    total = (out.student_loss * upstream[0]).sum() + (out.teacher_loss * upstream[1]).sum()
    student_grad, teacher_grad = torch.autograd.grad(total, (student, teacher), allow_unused=True)
    return student_grad, teacher_grad


def assert_expected(
    out: DistillationOutput, student_grad: Tensor, teacher_grad: Tensor, expected: Expected, tolerance: float
) -> None:
    """Both losses and both gradients near the reference's."""
    assert_near(out.student_loss, expected.student_loss, tolerance)
    assert_near(out.teacher_loss, expected.teacher_loss, tolerance)
    assert_near(student_grad, expected.student_grad, tolerance)
    assert_near(teacher_grad, expected.teacher_grad, tolerance)


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Largest error at most ``tolerance * (1 + largest value)``."""
    actual, expected = actual.detach(), expected.detach()
    bound = tolerance * (1 + float(expected.abs().max())) if expected.numel() else 0.0
    error = float((actual.double() - expected.double()).abs().max()) if expected.numel() else 0.0
    assert actual.shape == expected.shape
    assert error <= bound, f"error {error:.3e}, allowed {bound:.3e}"
