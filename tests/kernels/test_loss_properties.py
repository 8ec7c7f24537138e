"""Laws that hold for any logits."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import assert_near, make_example

from megaokd.kernels import DistillationOutput, Term, distillation_loss, eager
from megaokd.kernels.layout import Logits
from megaokd.kernels.merge import merge_statistics
from megaokd.kernels.spec import LossSpec

TERMS = [Term("ce", 0.3), Term("forward_kl", 1.0), Term("jsd", 1.0), Term("skew_reverse_kl", 1.0), Term("tvd", 1.0)]
TERMS += [Term("forward_kl_top", 1.0, top=5), Term("forward_kl_top", 1.0, top=1)]

sizes = st.tuples(st.integers(1, 5), st.integers(1, 61))
scales = st.sampled_from([0.01, 1.0, 30.0])
seeds = st.integers(0, 10**6)
few = settings(max_examples=25, deadline=None)


def loss(student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor) -> DistillationOutput:
    return distillation_loss(student, teacher, labels, student=TERMS, teacher=TERMS)


@few
@given(sizes, scales, seeds)
def test_divergences_are_not_negative(size: tuple[int, int], scale: float, seed: int) -> None:
    example = make_example(*size, seed=seed, scale=scale)
    out = loss(example.student.float(), example.teacher.float(), example.labels)
    for name in ("forward_kl", "reverse_kl", "jsd", "skew_reverse_kl", "tvd", "forward_kl_top(5)", "forward_kl_top(1)"):
        assert bool((out.metrics[name] >= -1e-6 * (1 + scale)).all()), name


@few
@given(sizes, scales, seeds)
def test_coarser_distributions_are_closer(size: tuple[int, int], scale: float, seed: int) -> None:
    """Data processing: KL grows with the number of tokens that are told apart, up to that of all of them."""
    example = make_example(*size, seed=seed, scale=scale)
    tops = [Term("forward_kl_top", 1.0, top=top) for top in (1, 2, 5, 20, 61, 100)]
    out = distillation_loss(example.student, example.teacher, example.labels, student=tops)
    values = torch.stack([out.metrics[term.name] for term in tops])
    slack = 1e-13 * (1 + float(values.abs().max()))
    assert bool((values >= -slack).all())
    assert bool((values.diff(dim=0) >= -slack).all())
    assert_near(values[-1], out.metrics["forward_kl"], 1e-13)


@few
@given(sizes, seeds, st.floats(-50, 50), st.floats(-50, 50))
def test_shift_invariance(size: tuple[int, int], seed: int, student_shift: float, teacher_shift: float) -> None:
    example = make_example(*size, seed=seed)
    plain = loss(example.student, example.teacher, example.labels)
    shifted = loss(example.student + student_shift, example.teacher + teacher_shift, example.labels)
    assert_near(shifted.student_loss, plain.student_loss, 1e-12)


@few
@given(sizes, seeds)
def test_gradient_rows_sum_to_zero(size: tuple[int, int], seed: int) -> None:
    example = make_example(*size, seed=seed)
    student, teacher = example.student.requires_grad_(), example.teacher.requires_grad_()
    out = loss(student, teacher, example.labels)
    for grad in torch.autograd.grad(out.student_loss.sum() + out.teacher_loss.sum(), (student, teacher)):
        assert_near(grad.sum(1), torch.zeros(size[0]), 1e-13)


@few
@given(sizes, seeds, st.data())
def test_any_split_of_the_columns_merges_to_the_same(size: tuple[int, int], seed: int, data: st.DataObject) -> None:
    num_tokens, vocab = size
    example = make_example(num_tokens, vocab, seed=seed, ignored=())
    cuts = data.draw(st.lists(st.integers(0, vocab), max_size=4).map(sorted))
    bounds = [0, *cuts, vocab]

    def stats(start: int, stop: int) -> torch.Tensor:
        spec = LossSpec((), (), 2.0, start, stop - start, vocab, has_teacher=True)
        logits = Logits(example.student[:, start:stop], example.teacher[:, start:stop], example.labels)
        return eager.statistics(logits, spec)

    spec = LossSpec((), (), 2.0, 0, vocab, vocab, has_teacher=True)
    whole = merge_statistics(stats(0, vocab).unsqueeze(0), spec)
    split = merge_statistics(torch.stack([stats(*pair) for pair in itertools.pairwise(bounds)]), spec)
    for name, value in whole.metrics.items():
        assert_near(split.metrics[name], value, 1e-12)
