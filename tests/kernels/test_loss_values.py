"""Values and both gradients of every term against the fp64 reference, on one process."""

import pytest
import torch
from loss_cases import EAGER_MIXES, assert_expected, assert_near, backward, expect, make_example, mixed_loss

from megaokd.kernels import Term, distillation_loss


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("mix", EAGER_MIXES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 3e-6)])
def test_matches_reference(mix: str, temperature: float, dtype: torch.dtype, tolerance: float) -> None:
    example = make_example(7, 131)
    student, teacher = example.student.to(dtype).requires_grad_(), example.teacher.to(dtype).requires_grad_()
    example.student, example.teacher = student.detach(), teacher.detach()
    expected = expect(example, mix, temperature)
    out = mixed_loss(mix, student, teacher, example.labels, temperature=temperature)
    assert out.student_loss.dtype == out.teacher_loss.dtype == dtype
    assert_expected(out, *backward(out, example, student, teacher), expected, tolerance)


@pytest.mark.parametrize("mix", EAGER_MIXES)
def test_low_precision_is_as_good_as_the_torch_formula(mix: str) -> None:
    """bf16 logits: our error is at most that of fp32 gradients rounded once to bf16, and a hair."""
    example = make_example(5, 257, scale=4.0)
    student, teacher = example.student.bfloat16().requires_grad_(), example.teacher.bfloat16().requires_grad_()
    example.student, example.teacher = student.detach(), teacher.detach()
    expected = expect(example, mix, 1.0)
    out = mixed_loss(mix, student, teacher, example.labels)
    for ours, exact in zip(
        backward(out, example, student, teacher), (expected.student_grad, expected.teacher_grad), strict=True
    ):
        assert ours.dtype == torch.bfloat16
        rounding = (exact.bfloat16().double() - exact).abs()
        one_ulp = exact.abs() * 2.0**-8
        assert bool(((ours.double() - exact).abs() <= rounding + one_ulp + 1e-6).all())


@pytest.mark.parametrize("mix", sorted(set(EAGER_MIXES) - {"tvd", "everything", "top_joint"}))
def test_gradcheck(mix: str) -> None:
    """Each side's gradient against finite differences of its own loss; tvd is not smooth."""
    example = make_example(3, 11)
    student, teacher = example.student.requires_grad_(), example.teacher.requires_grad_()

    def student_loss(logits: torch.Tensor) -> torch.Tensor:
        return mixed_loss(mix, logits, teacher.detach(), example.labels, temperature=2.0).student_loss

    def teacher_loss(logits: torch.Tensor) -> torch.Tensor:
        return mixed_loss(mix, student.detach(), logits, example.labels, temperature=2.0).teacher_loss

    assert torch.autograd.gradcheck(student_loss, (student,))
    assert torch.autograd.gradcheck(teacher_loss, (teacher,))


def test_stop_gradients() -> None:
    """The student's loss does not move the teacher, and the other way round."""
    example = make_example(4, 13)
    student, teacher = example.student.requires_grad_(), example.teacher.requires_grad_()
    out = distillation_loss(student, teacher, example.labels, student={"forward_kl": 1.0}, teacher={"reverse_kl": 1.0})
    assert torch.autograd.grad(out.student_loss.sum(), teacher, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(out.teacher_loss.sum(), student, allow_unused=True) == (None,)


def test_metrics() -> None:
    example = make_example(6, 17, ignored=(2,))
    terms = [Term("ce", 2.0), Term("jsd", 0.5), Term("jsd", 0.0, beta=0.25), Term("forward_kl", 1.0)]
    out = distillation_loss(example.student, example.teacher, example.labels, student=terms, temperature=2.0)
    assert set(out.metrics) == {
        *("student_ce", "teacher_ce", "student_entropy", "teacher_entropy", "top1_agreement"),
        *("forward_kl", "reverse_kl", "jsd", "jsd(0.25)"),
    }
    assert_near(
        out.student_loss, 2 * out.metrics["student_ce"] + 0.5 * out.metrics["jsd"] + out.metrics["forward_kl"], 1e-14
    )
    q = torch.distributions.Categorical(logits=example.student / 2)
    p = torch.distributions.Categorical(logits=example.teacher / 2)
    counted = example.labels != -100
    assert_near(out.metrics["student_entropy"], q.entropy() * counted, 1e-14)
    assert_near(out.metrics["teacher_entropy"], p.entropy() * counted, 1e-14)
    agreement = (example.student.argmax(1) == example.teacher.argmax(1)) & counted
    assert out.metrics["top1_agreement"].tolist() == agreement.double().tolist()
    assert not any(value.requires_grad for value in out.metrics.values())
    assert all(value[2] == 0 for value in out.metrics.values())


def test_smallest_id_wins_a_tie() -> None:
    student = torch.tensor([[0.0, 3.0, 3.0], [0.0, 3.0, 3.0]])
    teacher = torch.tensor([[0.0, 3.0, 1.0], [0.0, 1.0, 3.0]])
    out = distillation_loss(student, teacher, torch.tensor([0, 0]), student={"ce": 1.0})
    assert out.metrics["top1_agreement"].tolist() == [1.0, 0.0]


def test_plain_supervised_training() -> None:
    example = make_example(5, 19)
    student = example.student.requires_grad_()
    out = distillation_loss(student, None, example.labels, student={"ce": 1.0})
    expected = torch.nn.functional.cross_entropy(student, example.labels, reduction="none")
    assert_near(out.student_loss, expected, 1e-14)
    (ours,) = torch.autograd.grad(out.student_loss.sum(), student)
    (exact,) = torch.autograd.grad(expected.sum(), student)
    assert_near(ours, exact, 1e-14)
    assert out.metrics.keys() == {"student_ce", "student_entropy"}
    assert not out.teacher_loss.requires_grad


def test_token_weight() -> None:
    example = make_example(5, 19)
    student, teacher = example.student.requires_grad_(), example.teacher.requires_grad_()
    weight = torch.linspace(0, 1, 5, dtype=torch.float64)
    plain = distillation_loss(student, teacher, example.labels, student={"ce": 1.0}, teacher={"reverse_kl": 1.0})
    weighted = distillation_loss(
        student, teacher, example.labels, student={"ce": 1.0}, teacher={"reverse_kl": 1.0}, token_weight=weight
    )
    assert_near(weighted.student_loss, plain.student_loss * weight, 1e-15)
    assert_near(weighted.teacher_loss, plain.teacher_loss * weight, 1e-15)
    assert weighted.metrics["student_ce"].tolist() == plain.metrics["student_ce"].tolist()
