"""The Triton kernels under Triton's interpreter; `test_triton_interpreted` runs this file in a process of its own.

The interpreter's cost follows rows and blocks: few rows, at most three blocks of 1024 columns (fp32) or 2048.
"""

import math
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
from loss_cases import MIXES, Example, assert_expected, assert_near, backward, expect, make_example, mixed_loss
from sharded_worker import BOUNDS, launch
from test_loss_sharded import check_sharded
from torch import Tensor

from megaokd.kernels import DistillationOutput, distillation_loss, eager, linear_distillation_loss
from megaokd.kernels.gpu import backend
from megaokd.kernels.gpu import launch as launches

EVERYTHING = MIXES["everything"]
THREE_BLOCKS = 2051  # of fp32
pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")


@pytest.fixture(autouse=True)
def _poisoned_memory() -> Iterator[None]:
    """What the kernels should write and do not is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def run(
    example: Example, mix: str, temperature: float, student: Tensor, teacher: Tensor, *, name: str = "triton"
) -> tuple[DistillationOutput, Tensor, Tensor]:
    """Loss and both gradients from leaves made of these logits."""
    student, teacher = student.detach().requires_grad_(), teacher.detach().requires_grad_()
    out = mixed_loss(mix, student, teacher, example.labels, temperature=temperature, backend=name)
    return out, *backward(out, example, student, teacher)


def check(example: Example, mix: str, temperature: float = 1.0, tolerance: float = 3e-6) -> None:
    """fp32 against the fp64 reference: values and both gradients, inputs untouched."""
    student, teacher = example.student.float(), example.teacher.float()
    example.student, example.teacher = student.clone(), teacher.clone()
    expected = expect(example, mix, temperature)
    assert_expected(*run(example, mix, temperature, student, teacher), expected, tolerance)
    assert torch.equal(student, example.student)
    assert torch.equal(teacher, example.teacher)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("temperature", "programs"), [(1.0, 1), (2.0, 1024)])
def test_matches_reference(mix: str, temperature: float, programs: int) -> None:
    """Rows that begin off a boundary; one program a row, or a program for each block of it."""
    with mock.patch.object(launches, "PROGRAMS", programs):
        check(make_example(4, THREE_BLOCKS), mix, temperature)


@pytest.mark.parametrize("vocab", [1, 131, 1024, 2048])
def test_widths(vocab: int) -> None:
    example = make_example(3, vocab)
    check(example, "everything", 2.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("mix", "temperature"), [("joint", 1.0), ("everything", 2.0)])
def test_low_precision(mix: str, temperature: float, dtype: torch.dtype) -> None:
    """Arithmetic is fp32: the error of a gradient is that of one rounding, and a hair."""
    example = make_example(4, 4099, scale=4.0)
    student, teacher = example.student.to(dtype), example.teacher.to(dtype)
    example.student, example.teacher = student, teacher
    expected = expect(example, mix, temperature)
    out, *grads = run(example, mix, temperature, student, teacher)
    assert_near(out.student_loss, expected.student_loss, 3e-6)
    assert_near(out.teacher_loss, expected.teacher_loss, 3e-6)
    # The interpreter cuts fp32 to bf16 instead of rounding it as devices do: a whole unit in the last place.
    ulp = torch.finfo(dtype).eps * (1.0 if dtype == torch.bfloat16 else 0.5)
    for ours, exact in zip(grads, (expected.student_grad, expected.teacher_grad), strict=True):
        assert ours.dtype == dtype
        rounding = (exact.to(dtype).double() - exact).abs()
        assert bool(((ours.double() - exact).abs() <= rounding + ulp * exact.abs() + 1e-6).all())


def test_metrics_and_ties() -> None:
    """Every metric of the eager backend; equal largest logits in different blocks."""
    example = make_example(4, THREE_BLOCKS)
    student, teacher = example.student.float(), example.teacher.float()
    student[:, [5, 1500]] = teacher[:, [2050, 5]] = 40.0
    teacher[3, 5] = 0.0
    for programs in (1, 1024):
        with mock.patch.object(launches, "PROGRAMS", programs):
            ours = run(example, "everything", 1.0, student, teacher)[0].metrics
        exact = run(example, "everything", 1.0, student, teacher, name="eager")[0].metrics
        assert ours.keys() == exact.keys()
        for key, value in exact.items():
            assert_near(ours[key], value, 3e-6)
        assert ours["top1_agreement"].tolist() == [1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(("widths", "start"), [((2056, 2064), 0), ((2053, 2058), 3), ((2059, 2059), 1)])
def test_strides_and_padding(widths: tuple[int, int], start: int) -> None:
    """Views that begin off a boundary, rows of other strides; padding and ignored rows are NaN and stay unread."""
    example = make_example(4, THREE_BLOCKS)
    expected = expect(example, "everything", 1.0)
    leaves = []
    for width, logits in zip(widths, (example.student, example.teacher), strict=True):
        leaf = torch.full((2, 3, width + start), math.nan)
        leaf[:, :2, start : start + THREE_BLOCKS] = logits.view(2, 2, -1).float()
        leaf[0, 1] = math.nan  # the ignored row
        leaves.append(leaf.requires_grad_())
    views = (leaf[:, :2, start:] for leaf in leaves)
    out = mixed_loss("everything", *views, example.labels.view(2, 2), vocab_size=THREE_BLOCKS, backend="triton")
    out.student_loss, out.teacher_loss = out.student_loss.flatten(), out.teacher_loss.flatten()
    grads = backward(out, example, *leaves)
    assert_near(out.student_loss, expected.student_loss, 3e-6)
    for grad, exact in zip(grads, (expected.student_grad, expected.teacher_grad), strict=True):
        assert_near(grad[:, :2, start : start + THREE_BLOCKS].flatten(0, 1), exact, 3e-6)
        assert bool((grad[:, :, start + THREE_BLOCKS :] == 0).all())
        assert bool((grad[:, :, :start] == 0).all())
        assert bool((grad[:, 2] == 0).all())


def test_handed_to_eager() -> None:
    """fp64 logits and transposed ones are right too."""
    example = make_example(4, 13)
    expected = expect(example, "joint", 1.0)
    transposed = [x.float().t().contiguous().t() for x in (example.student, example.teacher)]
    for student, teacher, tolerance in ((example.student, example.teacher, 1e-13), (*transposed, 3e-6)):
        _, student_grad, teacher_grad = run(example, "joint", 1.0, student, teacher)
        assert_near(student_grad, expected.student_grad, tolerance)
        assert_near(teacher_grad, expected.teacher_grad, tolerance)


@pytest.mark.parametrize("mix", MIXES)
def test_large_offsets(mix: str) -> None:
    for offset in (1e4, -1e4):
        check(make_example(2, 101, offset=offset, ignored=()), mix)


@pytest.mark.parametrize("mix", sorted(set(MIXES) - {"ce", "joint", "crossed", "everything"}))
def test_identical_distributions(mix: str) -> None:
    example = make_example(3, 211, offset=1e4, ignored=())
    logits = example.student.float()
    for value in run(example, mix, 1.0, logits, logits.clone()):
        tensor = value.student_loss if isinstance(value, DistillationOutput) else value
        assert_near(tensor, torch.zeros_like(tensor), 1e-6)


@pytest.mark.parametrize(("vocab", "column"), [(13, 12), (THREE_BLOCKS, 0), (THREE_BLOCKS, 1500)])
def test_tokens_that_both_rule_out(vocab: int, column: int) -> None:
    """-inf on both sides, at an edge and inside the loop: as the eager backend has it."""
    example = make_example(3, vocab)
    example.labels[example.labels == column] = 3
    student, teacher = example.student.float(), example.teacher.float()
    student[:, column] = teacher[:, column] = -math.inf
    results = [run(example, "everything", 2.0, student, teacher, name=name) for name in ("triton", "eager")]
    assert_near(results[0][0].student_loss, results[1][0].student_loss, 3e-6)
    for ours, exact in zip(results[0][1:], results[1][1:], strict=True):
        assert bool(exact.isfinite().all())
        assert_near(ours, exact, 3e-6)
        assert bool((ours[:, column] == 0).all())


@pytest.mark.parametrize("masked", ["student", "teacher"])
@pytest.mark.parametrize(
    ("mix", "vocab", "column"),
    [(mix, 13, 12) for mix in sorted(set(MIXES) - {"everything"})]
    + [(mix, THREE_BLOCKS, 1500) for mix in ("joint", "crossed", "jsd")],
)
def test_a_token_that_one_side_rules_out(mix: str, masked: str, vocab: int, column: int) -> None:
    """At an edge and inside the loop: finite divergences and their gradients are right, an infinite one says so."""
    example = make_example(2, vocab, ignored=())
    example.labels[example.labels == column] = 3
    getattr(example, masked)[:, column] = -math.inf
    expected = expect(example, mix, 1.0)
    out, *grads = run(example, mix, 1.0, example.student.float(), example.teacher.float())
    losses = (out.student_loss, out.teacher_loss)
    exact = (expected.student_grad, expected.teacher_grad)
    for loss, wanted, grad, wanted_grad in zip(
        losses, (expected.student_loss, expected.teacher_loss), grads, exact, strict=True
    ):
        assert loss.isinf().tolist() == wanted.isinf().tolist()
        if bool(wanted.isfinite().all()):
            assert_near(loss, wanted, 3e-6)
            assert_near(grad, wanted_grad.nan_to_num(0.0), 3e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 1500])
def test_not_a_number(value: float, column: int) -> None:
    """One bad logit makes the row's loss NaN, not the others'; a row of nothing but -inf too."""
    example = make_example(4, THREE_BLOCKS)
    student, teacher = example.student.float(), example.teacher.float()
    student[0, column] = value
    student[2] = -math.inf
    out, student_grad, _ = run(example, "joint", 1.0, student, teacher)
    assert out.student_loss.isnan().tolist() == [True, False, True, False]
    assert bool(student_grad[0].isnan().all())
    assert bool(student_grad[3].isfinite().all())


def test_probabilities_that_underflow() -> None:
    """Gaps of hundreds of nats: no 0 * -inf in jsd and skew."""
    example = make_example(1, 4)
    example.labels = torch.tensor([0])
    example.student = torch.tensor([[0.0, -400.0, 3.0, -900.0]])
    example.teacher = torch.tensor([[-700.0, 0.0, -500.0, 1.0]])
    check(example, "everything")


def test_a_maximum_that_grows() -> None:
    """Ever larger logits over the blocks: sums that shrink to nothing, and divergences that move with them."""
    example = make_example(2, THREE_BLOCKS, ignored=())
    slope = torch.linspace(0, 300, THREE_BLOCKS, dtype=torch.float64)
    example.student += slope
    example.teacher += slope.flip(0) * 0.1
    for programs in (1, 1024):
        with mock.patch.object(launches, "PROGRAMS", programs):
            check(example, "everything", 2.0)


def test_student_alone() -> None:
    example = make_example(4, THREE_BLOCKS)
    student = example.student.float().requires_grad_()
    outs = [
        distillation_loss(student, None, example.labels, student={"ce": 1.0}, temperature=2.0, backend=name)
        for name in ("triton", "eager")
    ]
    ours, exact = (torch.autograd.grad(out.student_loss.sum(), student)[0] for out in outs)
    assert_near(ours, exact, 3e-6)
    for name, value in outs[1].metrics.items():
        assert_near(outs[0].metrics[name], value, 3e-6)


def test_frozen_teacher() -> None:
    """No side, no output, and where the student has only cross-entropy not even the teacher's logits."""
    example = make_example(3, 13)
    for objective, reads_teacher in (({"forward_kl": 1.0}, True), ({"ce": 1.0, "jsd": 0.0}, False)):
        student, teacher = example.student.float().requires_grad_(), example.teacher.float().requires_grad_()
        out = distillation_loss(student, teacher, example.labels, student=objective, backend="triton")
        with mock.patch.object(backend, "gradients_launch", wraps=backend.gradients_launch) as launched:
            out.student_loss.sum().backward()
        (call,) = launched.call_args_list
        arguments = backend.gradients_launch(*call.args).arguments
        assert arguments["teacher_out"] is arguments["TEACHER_SIDE"] is None
        assert (arguments["teacher"] is not None) == reads_teacher
        assert student.grad is not None
        assert teacher.grad is None


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_no_loss_tokens(num_tokens: int) -> None:
    student, teacher = torch.randn(2, num_tokens, 1027).unbind()
    student.requires_grad_(), teacher.requires_grad_()
    labels = torch.full((num_tokens,), -100)
    out = mixed_loss("everything", student, teacher, labels, temperature=2.0, backend="triton")
    (out.student_loss.sum() + out.teacher_loss.sum()).backward()
    assert out.student_loss.tolist() == [0.0] * num_tokens
    for leaf in (student, teacher):
        assert leaf.grad is not None
        assert bool((leaf.grad == 0).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("recompute", [False, True])
def test_fused_form_in_place(dtype: torch.dtype, recompute: bool) -> None:
    """Gradients written over the logits that they are computed from."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 8), (2500, 8), (4, 12), (2500, 12))
    leaves = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    labels = torch.tensor([0, 2499, -100, 7])
    grads = []
    for name in ("triton", "eager"):
        out = linear_distillation_loss(
            *leaves, labels, student=EVERYTHING[0], teacher=EVERYTHING[1], recompute=recompute, backend=name
        )
        total = (out.student_loss + out.teacher_loss).sum()
        grads.append([total.detach(), *torch.autograd.grad(total, leaves[:3])])
    for ours, exact in zip(*grads, strict=True):
        assert_near(ours, exact, 3e-6 if dtype == torch.float32 else 2.0**-7)


def sharded(group: torch.distributed.ProcessGroup) -> None:
    """A shard of a single column, and one of none."""
    for bounds in BOUNDS[group.size()][1 : 5 - group.size()]:
        check_sharded("everything", 2.0, bounds, group, dtype=torch.float32, tolerance=3e-6, backend="triton")


@pytest.mark.parametrize("world_size", [2, 4])
def test_sharded(world_size: int) -> None:
    launch([sharded], world_size)


def test_eager_is_not_behind_it() -> None:
    """What these tests compare is the kernels: eager code is not called for ordinary logits."""
    example = make_example(2, 5)
    with (
        mock.patch.object(eager, "statistics", side_effect=AssertionError),
        mock.patch.object(eager, "mixtures", side_effect=AssertionError),
        mock.patch.object(eager, "gradients", side_effect=AssertionError),
    ):
        check(example, "everything")
