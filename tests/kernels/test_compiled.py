"""The compiled CPU backend: the same numbers as the reference, whatever the width, strides and masks."""

import math

import pytest
import torch
from loss_cases import MIXES, assert_expected, assert_near, backward, expect, make_example, mixed_loss

from megaokd.kernels import Term, compiled, distillation_loss, linear_distillation_loss

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not compiled.is_available(torch.device("cpu")), reason="no C++ compiler"),
]


@pytest.mark.parametrize("vocab", [1, 131, 2609])
@pytest.mark.parametrize(("mix", "temperature"), [("joint", 1.0), ("everything", 2.0)])
def test_matches_reference(mix: str, temperature: float, vocab: int) -> None:
    """One column, less than a block, two blocks and a tail; ignored rows."""
    example = make_example(7, vocab)
    student, teacher = example.student.float().requires_grad_(), example.teacher.float().requires_grad_()
    example.student, example.teacher = student.detach(), teacher.detach()
    expected = expect(example, mix, temperature)
    outs = [
        mixed_loss(mix, student, teacher, example.labels, temperature=temperature, backend=backend)
        for backend in ("compiled", "eager")
    ]
    assert_expected(outs[0], *backward(outs[0], example, student, teacher), expected, 3e-6)
    for name, value in outs[1].metrics.items():
        assert_near(outs[0].metrics[name], value, 3e-6)


@pytest.mark.parametrize("mix", ["joint", "everything"])
def test_ruled_out_tokens(mix: str) -> None:
    """-inf on both sides: the numbers of the eager backend, whose treatment of them test_loss_inputs pins."""
    results = []
    for backend in ("compiled", "eager"):
        example = make_example(7, 131)
        student, teacher = example.student.float(), example.teacher.float()
        student[2:4, 43] = teacher[2:4, 43] = -math.inf
        example.labels[2:4] = 0
        student.requires_grad_(), teacher.requires_grad_()
        out = mixed_loss(mix, student, teacher, example.labels, temperature=2.0, backend=backend)
        results.append([out.student_loss, out.teacher_loss, *backward(out, example, student, teacher)])
    for ours, exact in zip(*results, strict=True):
        assert bool(exact.isfinite().all())
        assert_near(ours, exact, 3e-6)


def test_strides_padding_and_weights() -> None:
    """Shifted batches, padded columns full of NaN, and other weights of the same terms, without a new compilation."""
    example = make_example(8, 1500)
    student, teacher = (torch.full((2, 5, 1504), math.nan) for _ in range(2))
    student[:, :4, :1500], teacher[:, :4, :1500] = (
        x.view(2, 4, 1500).float() for x in (example.student, example.teacher)
    )
    example.student, example.teacher = student[:, :4, :1500].flatten(0, 1), teacher[:, :4, :1500].flatten(0, 1)
    expected = expect(example, "joint", 1.0)
    student.requires_grad_(), teacher.requires_grad_()
    for factor in (1.0, 0.5):
        terms = [[Term(term.kind, factor * term.weight) for term in side] for side in MIXES["joint"]]
        out = distillation_loss(
            student[:, :4],
            teacher[:, :4],
            example.labels.view(2, 4),
            student=terms[0],
            teacher=terms[1],
            vocab_size=1500,
            backend="compiled",
        )
        out.student_loss, out.teacher_loss = out.student_loss.flatten(), out.teacher_loss.flatten()
        grads = backward(out, example, student, teacher)
        for grad, exact in zip(grads, (expected.student_grad, expected.teacher_grad), strict=True):
            assert_near(grad[:, :4, :1500].flatten(0, 1), factor * exact, 3e-6)
            assert bool((grad[:, :, 1500:] == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_form_in_place(dtype: torch.dtype) -> None:
    """Gradients written over the logits they are computed from."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, teacher_hidden, teacher_weight = (
        torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        for shape in ((6, 8), (1400, 8), (6, 12), (1400, 12))
    )
    labels = torch.tensor([0, 1399, -100, 7, 8, 9])
    grads = []
    for backend in ("compiled", "eager"):
        out = linear_distillation_loss(
            *(hidden, weight, teacher_hidden, teacher_weight, labels),
            student=MIXES["joint"][0],
            teacher=MIXES["joint"][1],
            backend=backend,
        )
        total = out.student_loss + out.teacher_loss
        grads.append([total.detach(), *torch.autograd.grad(total, (hidden, weight, teacher_hidden))])
    for ours, exact in zip(*grads, strict=True):
        assert_near(ours, exact, 3e-6 if dtype == torch.float32 else 2.0**-7)
