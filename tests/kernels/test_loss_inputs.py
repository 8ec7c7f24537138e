"""Inputs that break losses elsewhere."""

import math
from unittest import mock

import pytest
import torch
from loss_cases import EAGER_MIXES, assert_near, backward, expect, make_example

from megaokd.kernels import Term, blocks, distillation_loss, eager

JOINT = EAGER_MIXES["everything"]


def test_inputs_untouched_and_padding_never_read() -> None:
    """NaN in padded columns (differing in number) and in ignored rows reaches nothing; they get no gradient."""
    example = make_example(7, 13, ignored=(1, 4))
    expected = expect(example, "everything", 1.0)
    student, teacher = (torch.full((7, width), math.nan, dtype=torch.float64) for width in (16, 14))
    student[:, :13], teacher[:, :13] = example.student, example.teacher
    for logits in (student, teacher):
        logits[[1, 4]] = math.nan
    before = student.clone(), teacher.clone()
    student.requires_grad_(), teacher.requires_grad_()
    out = distillation_loss(student, teacher, example.labels, student=JOINT[0], teacher=JOINT[1], vocab_size=13)
    student_grad, teacher_grad = backward(out, example, student, teacher)
    assert_near(out.student_loss, expected.student_loss, 1e-13)
    assert_near(student_grad[:, :13], expected.student_grad, 1e-13)
    assert_near(teacher_grad[:, :13], expected.teacher_grad, 1e-13)
    for grad in (student_grad, teacher_grad):
        assert bool((grad[:, 13:] == 0).all())
        assert bool((grad[[1, 4]] == 0).all())
    assert torch.equal(student.nan_to_num(7.0), before[0].nan_to_num(7.0))
    assert torch.equal(teacher.nan_to_num(7.0), before[1].nan_to_num(7.0))


def test_strided_logits() -> None:
    """Shifted batches, transposed and broadcast logits; gradients come back in the input's own place."""
    example = make_example(12, 13, ignored=(5,))
    expected = expect(example, "everything", 1.0)
    student = torch.zeros(3, 5, 13, dtype=torch.float64)
    student[:, :-1] = example.student.view(3, 4, 13)
    student.requires_grad_()
    teacher = example.teacher.view(3, 4, 13).transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    out = distillation_loss(student[:, :-1], teacher, example.labels.view(3, 4), student=JOINT[0], teacher=JOINT[1])
    assert out.student_loss.shape == (3, 4)
    example.student_upstream = example.student_upstream.view(3, 4)
    example.teacher_upstream = example.teacher_upstream.view(3, 4)
    student_grad, teacher_grad = backward(out, example, student, teacher)
    assert_near(out.student_loss.flatten(), expected.student_loss, 1e-13)
    assert_near(student_grad[:, :-1].reshape(12, 13), expected.student_grad, 1e-13)
    assert bool((student_grad[:, -1] == 0).all())
    assert_near(teacher_grad.reshape(12, 13), expected.teacher_grad, 1e-13)


@pytest.mark.parametrize("block", [1, 40, 100])
def test_block_size_does_not_matter(block: int) -> None:
    example = make_example(11, 13, ignored=(0, 3, 10))
    expected = expect(example, "joint", 1.0)
    student, teacher = example.student.requires_grad_(), example.teacher.requires_grad_()
    with mock.patch.object(blocks, "CPU_BLOCK", block):
        out = distillation_loss(
            student, teacher, example.labels, student=EAGER_MIXES["joint"][0], teacher=EAGER_MIXES["joint"][1]
        )
        grads = backward(out, example, student, teacher)
    assert_near(grads[0], expected.student_grad, 1e-13)
    assert_near(grads[1], expected.teacher_grad, 1e-13)


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_no_loss_tokens(num_tokens: int) -> None:
    """No tokens, or all ignored: losses of 0 and gradients of 0."""
    student = torch.randn(num_tokens, 5, requires_grad=True)
    teacher = torch.randn(num_tokens, 5, requires_grad=True)
    labels = torch.full((num_tokens,), -100)
    out = distillation_loss(student, teacher, labels, student=JOINT[0], teacher=JOINT[1], temperature=2.0)
    (out.student_loss.sum() + out.teacher_loss.sum()).backward()
    assert out.student_loss.tolist() == [0.0] * num_tokens
    assert student.grad is not None
    assert student.grad.tolist() == torch.zeros(num_tokens, 5).tolist()
    assert teacher.grad is not None
    assert teacher.grad.tolist() == torch.zeros(num_tokens, 5).tolist()


def test_vocabulary_of_one_token() -> None:
    student, teacher = torch.randn(2, 1, requires_grad=True), torch.randn(2, 1, requires_grad=True)
    out = distillation_loss(student, teacher, torch.tensor([0, 0]), student=JOINT[0], teacher=JOINT[1])
    grads = torch.autograd.grad(out.student_loss.sum() + out.teacher_loss.sum(), (student, teacher))
    for value in (out.student_loss, out.teacher_loss, *grads):
        assert_near(value, torch.zeros_like(value), 1e-6)


@pytest.mark.parametrize("offset", [1e4, -1e4])
@pytest.mark.parametrize("mix", EAGER_MIXES)
def test_large_offsets(mix: str, offset: float) -> None:
    """Logits around +-1e4 in fp32: what is lost is lost in the inputs, not in the loss."""
    example = make_example(5, 101, offset=offset)
    student, teacher = example.student.float().requires_grad_(), example.teacher.float().requires_grad_()
    example.student, example.teacher = student.detach(), teacher.detach()
    expected = expect(example, mix, 1.0)
    out = distillation_loss(student, teacher, example.labels, student=EAGER_MIXES[mix][0], teacher=EAGER_MIXES[mix][1])
    grads = backward(out, example, student, teacher)
    assert_near(out.student_loss, expected.student_loss, 3e-6)
    assert_near(grads[0], expected.student_grad, 3e-6)
    assert_near(grads[1], expected.teacher_grad, 3e-6)


@pytest.mark.parametrize("mix", sorted(set(EAGER_MIXES) - {"ce", "joint", "crossed", "everything", "top_joint"}))
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_identical_distributions(mix: str, offset: float) -> None:
    logits = make_example(5, 211, offset=offset).student.float()
    student, teacher = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    labels = torch.arange(5)
    out = distillation_loss(student, teacher, labels, student=EAGER_MIXES[mix][0], teacher=EAGER_MIXES[mix][1])
    grads = torch.autograd.grad(out.student_loss.sum() + out.teacher_loss.sum(), (student, teacher))
    for value in (out.student_loss, out.teacher_loss, *grads):
        assert_near(value, torch.zeros_like(value), 1e-6)


def test_a_token_that_both_rule_out() -> None:
    """-inf on both sides is as if the column did not exist."""
    example = make_example(5, 13)
    example.labels[example.labels == 12] = 3
    expected = expect(example, "everything", 1.0)
    wide = [
        torch.cat([x, torch.full((5, 2), -math.inf, dtype=x.dtype)], dim=1) for x in (example.student, example.teacher)
    ]
    student, teacher = wide[0].requires_grad_(), wide[1].requires_grad_()
    out = distillation_loss(student, teacher, example.labels, student=JOINT[0], teacher=JOINT[1])
    student_grad, teacher_grad = backward(out, example, student, teacher)
    assert_near(out.student_loss, expected.student_loss, 1e-13)
    assert_near(student_grad[:, :13], expected.student_grad, 1e-13)
    assert_near(teacher_grad[:, :13], expected.teacher_grad, 1e-13)
    assert bool((student_grad[:, 13:] == 0).all())
    assert bool((teacher_grad[:, 13:] == 0).all())


@pytest.mark.parametrize("masked", ["student", "teacher"])
@pytest.mark.parametrize("mix", sorted(set(EAGER_MIXES) - {"everything", "top_joint"}))
def test_a_token_that_one_side_rules_out(mix: str, masked: str) -> None:
    """Finite divergences and their gradients are right; a divergence that is infinite says so."""
    example = make_example(5, 13)
    example.labels[example.labels == 12] = 3
    getattr(example, masked)[:, 12] = -math.inf
    expected = expect(example, mix, 1.0)
    student, teacher = example.student.float().requires_grad_(), example.teacher.float().requires_grad_()
    out = distillation_loss(student, teacher, example.labels, student=EAGER_MIXES[mix][0], teacher=EAGER_MIXES[mix][1])
    grads = backward(out, example, student, teacher)
    exact = (expected.student_grad, expected.teacher_grad)
    for loss, wanted, grad, wanted_grad in zip(
        (out.student_loss, out.teacher_loss), (expected.student_loss, expected.teacher_loss), grads, exact, strict=True
    ):
        finite = bool(wanted.isfinite().all())
        assert loss.isfinite().tolist() == wanted.isfinite().tolist()
        if finite:
            assert_near(loss, wanted, 3e-6)
            assert_near(grad, wanted_grad.nan_to_num(0.0), 3e-6)


def test_probabilities_that_underflow() -> None:
    """Gaps of hundreds of nats: no 0 * -inf in jsd and skew."""
    student = torch.tensor([[0.0, -400.0, 3.0, -900.0]])
    teacher = torch.tensor([[-700.0, 0.0, -500.0, 1.0]])
    example = make_example(1, 4)
    example.labels = torch.tensor([0])
    example.student, example.teacher = student.clone(), teacher.clone()
    expected = expect(example, "everything", 1.0)
    student.requires_grad_(), teacher.requires_grad_()
    out = distillation_loss(student, teacher, example.labels, student=JOINT[0], teacher=JOINT[1])
    grads = backward(out, example, student, teacher)
    assert_near(out.student_loss, expected.student_loss, 3e-6)
    assert_near(grads[0], expected.student_grad, 3e-6)
    assert_near(grads[1], expected.teacher_grad, 3e-6)


def test_frozen_teacher_costs_no_gradient() -> None:
    """No teacher gradient is computed for an empty objective or one of zeros."""
    example = make_example(5, 13)
    for teacher_terms in (None, {}, {"ce": 0.0, "forward_kl": 0.0}):
        student, teacher = example.student.clone().requires_grad_(), example.teacher.clone().requires_grad_()
        out = distillation_loss(student, teacher, example.labels, student={"forward_kl": 1.0}, teacher=teacher_terms)
        assert not out.teacher_loss.requires_grad
        with mock.patch.object(eager, "_block_gradient", wraps=eager._block_gradient) as computed:
            (out.student_loss.sum() + out.teacher_loss.sum()).backward()
        assert [call.args[0] for call in computed.call_args_list] == ["student"]
        assert teacher.grad is None
        assert out.teacher_loss.tolist() == [0.0] * 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_for_backward(dtype: torch.dtype) -> None:
    """The logits as they came and a few numbers a token, nothing else of the logits' size."""
    example = make_example(64, 512)
    student, teacher = example.student.to(dtype).requires_grad_(), example.teacher.to(dtype).requires_grad_()
    saved: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        saved.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        distillation_loss(
            student, teacher, example.labels, student=EAGER_MIXES["joint"][0], teacher=EAGER_MIXES["joint"][1]
        )
    logits = [x for x in saved if x.data_ptr() in (student.data_ptr(), teacher.data_ptr())]
    others = [x for x in saved if x.data_ptr() not in (student.data_ptr(), teacher.data_ptr())]
    assert len(logits) == 2
    assert sum(x.numel() for x in others) <= 64 * 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"student": {"kl": 1.0}}, "unknown term"),
        ({"student": {}}, "empty"),
        ({"student": {"ce": -1.0}}, "not negative"),
        ({"student": {"ce": math.nan}}, "finite"),
        ({"student": "ce"}, "mapping"),
        ({"temperature": 0.0}, "temperature"),
        ({"labels": torch.tensor([0, 5, -100])}, "label 5"),
        ({"labels": torch.tensor([0, -1, -100])}, "label -1"),
        ({"labels": torch.tensor([0.0, 1.0, 2.0])}, "int64"),
        ({"labels": torch.tensor([0, 1])}, "shape"),
        ({"teacher_logits": torch.zeros(3, 6)}, "say so with vocab_size"),
        ({"teacher_logits": torch.zeros(3, 6), "vocab_size": 6}, "same ranges"),
        ({"teacher_logits": torch.zeros(3, 5, dtype=torch.int64)}, "must be one of"),
        ({"teacher_logits": None}, "without a teacher"),
        ({"token_weight": torch.ones(2)}, "token_weight"),
        ({"vocab_start": 2, "vocab_size": 7}, "without a group"),
        ({"vocab_size": 6}, "without a group"),
        ({"vocab_start": -1}, "vocab_start"),
        ({"backend": "fast"}, "unknown backend"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {
        "student_logits": torch.zeros(3, 5),
        "teacher_logits": torch.zeros(3, 5),
        "labels": torch.tensor([0, 4, -100]),
        "student": {"forward_kl": 1.0},
    }
    with pytest.raises(ValueError, match=message):
        distillation_loss(**(arguments | change))


@pytest.mark.parametrize("option", [{"beta": 0.0}, {"alpha": 1.0}])
def test_options_out_of_range(option: dict) -> None:
    with pytest.raises(ValueError, match="strictly between"):
        Term("jsd", 1.0, **option)


def test_equal_terms_add_up() -> None:
    example = make_example(3, 7)
    twice = distillation_loss(
        example.student, example.teacher, example.labels, student=[Term("ce", 1.0), Term("ce", 0.5)]
    )
    once = distillation_loss(example.student, example.teacher, example.labels, student={"ce": 1.5})
    assert_near(twice.student_loss, once.student_loss, 1e-15)
