"""The loss over a vocabulary split over real processes: values, both gradients, and collectives counted."""

from collections import Counter

import pytest
import torch
import torch.distributed as dist
from loss_cases import EAGER_MIXES, Expected, assert_expected, assert_near, backward, expect, make_example, mixed_loss
from sharded_worker import BOUNDS, VOCAB, CountedCollectives, launch, shard_of

from megaokd.kernels import Term, distillation_loss, linear_distillation_loss
from megaokd.kernels.reference import reference_loss

TWO_PASS = {"jsd", "skew_forward_kl", "skew_reverse_kl", "tvd", "everything", "top", "top_joint"}


def check_sharded(
    mix: str,
    temperature: float,
    bounds: list[int],
    group: dist.ProcessGroup,
    *,
    dtype: torch.dtype,
    tolerance: float,
    backend: str = "auto",
) -> None:
    """One mix on one split; each rank's own gradient must be its columns of the unsharded one, not tp times that."""
    example = make_example(5, VOCAB)
    example.labels[2:4] = torch.tensor([bounds[1], max(bounds[1] - 1, 0)]).clamp(max=VOCAB - 1)  # on a shard's edge
    full = [example.student.to(dtype), example.teacher.to(dtype)]
    example.student, example.teacher = full
    columns = shard_of(bounds, group.rank())
    whole = expect(example, mix, temperature)
    grads = whole.student_grad[:, columns], whole.teacher_grad[:, columns]
    expected = Expected(whole.student_loss, whole.teacher_loss, *grads)
    student, teacher = (x[:, columns].clone().requires_grad_() for x in full)
    with CountedCollectives() as forward_calls:
        out = mixed_loss(
            mix,
            *(student, teacher, example.labels),
            temperature=temperature,
            group=group,
            vocab_start=columns.start,
            vocab_size=VOCAB,
            backend=backend,
        )
    with CountedCollectives() as backward_calls:
        gradients = backward(out, example, student, teacher)
    calls = 0 if group.size() == 1 else 2 if mix in TWO_PASS else 1
    assert forward_calls.counts == ({"allgather_": calls} if calls else {})
    assert backward_calls.counts == {}
    assert_expected(out, *gradients, expected, tolerance)


def every_mix(group: dist.ProcessGroup) -> None:
    for bounds in BOUNDS[group.size()]:
        for mix in EAGER_MIXES:
            for temperature in (1.0, 2.0):
                check_sharded(mix, temperature, bounds, group, dtype=torch.float64, tolerance=1e-13)
            check_sharded(mix, 1.0, bounds, group, dtype=torch.float32, tolerance=3e-6)


def ranks_agree(group: dist.ProcessGroup) -> None:
    """Losses and metrics are bit-identical on all ranks, and the argmax is global."""
    example = make_example(5, VOCAB)
    columns = shard_of(BOUNDS[group.size()][0], group.rank())
    out = distillation_loss(
        example.student[:, columns],
        example.teacher[:, columns],
        example.labels,
        student=EAGER_MIXES["everything"][0],
        group=group,
        vocab_start=columns.start,
        vocab_size=VOCAB,
    )
    mine = torch.stack([out.student_loss, *out.metrics.values()])
    everyone = torch.empty(group.size(), *mine.shape, dtype=mine.dtype)
    dist.all_gather(list(everyone.unbind(0)), mine, group=group)
    assert all(torch.equal(other, mine) for other in everyone)
    whole = distillation_loss(example.student, example.teacher, example.labels, student=EAGER_MIXES["everything"][0])
    for name, value in whole.metrics.items():
        assert_near(out.metrics[name], value, 1e-13)


def tie_across_ranks(group: dist.ProcessGroup) -> None:
    """The smallest id wins although another rank holds an equal logit."""
    student, teacher = torch.zeros(1, group.size()), torch.zeros(1, group.size())
    teacher[0, 0] = 0.0 if group.size() > 1 else 1.0
    column = slice(group.rank(), group.rank() + 1)
    out = distillation_loss(
        student[:, column],
        teacher[:, column],
        torch.tensor([0]),
        student={"ce": 1.0},
        group=group,
        vocab_start=group.rank(),
        vocab_size=group.size(),
    )
    assert out.metrics["top1_agreement"].item() == 1.0


def ties_of_the_likeliest(group: dist.ProcessGroup) -> None:
    """Of equal logits the smallest ids are in the set, wherever they lie; tokens of -inf come last."""
    example = make_example(6, VOCAB, ignored=())
    example.teacher = example.teacher.round()  # a dozen values for all tokens
    example.teacher[-1, 3:] = -torch.inf
    options = {"student": [Term("ce", 1.0)] + [Term("forward_kl_top", 1.0, top=top) for top in (1, 9, 30, VOCAB, 500)]}
    leaf = example.student.clone().requires_grad_()
    expected, _ = reference_loss(leaf, example.teacher, example.labels, **options)
    (exact,) = torch.autograd.grad(expected.sum(), leaf)
    for bounds in BOUNDS[group.size()]:
        columns = shard_of(bounds, group.rank())
        student = example.student[:, columns].clone().requires_grad_()
        shard = {"group": group, "vocab_start": columns.start, "vocab_size": VOCAB}
        out = distillation_loss(student, example.teacher[:, columns], example.labels, **options, **shard)
        assert_near(out.student_loss, expected, 1e-13)
        assert_near(torch.autograd.grad(out.student_loss.sum(), student)[0], exact[:, columns], 1e-13)


def padding_differs(group: dist.ProcessGroup) -> None:
    """Padded columns on the last rank, NaN inside, change nothing."""
    example = make_example(4, VOCAB)
    expected = expect(example, "everything", 1.0)
    width = -(-VOCAB // group.size()) + 1
    padded = [torch.full((4, width * group.size()), torch.nan, dtype=torch.float64) for _ in range(2)]
    padded[0][:, :VOCAB], padded[1][:, :VOCAB] = example.student, example.teacher
    start = group.rank() * width
    student, teacher = (x[:, start : start + width].clone().requires_grad_() for x in padded)
    out = mixed_loss("everything", student, teacher, example.labels, group=group, vocab_start=start, vocab_size=VOCAB)
    grads = backward(out, example, student, teacher)
    real = max(0, min(width, VOCAB - start))
    assert_near(out.student_loss, expected.student_loss, 1e-13)
    for grad, exact in zip(grads, (expected.student_grad, expected.teacher_grad), strict=True):
        assert_near(grad[:, :real], exact[:, start : start + real], 1e-13)
        assert bool((grad[:, real:] == 0).all())


def no_tokens(group: dist.ProcessGroup) -> None:
    """An empty batch, and one whose tokens are all ignored, end on every rank without a hang."""
    for num_tokens in (0, 3):
        student, teacher = torch.randn(2, num_tokens, 2).requires_grad_()
        out = distillation_loss(
            student,
            teacher,
            torch.full((num_tokens,), -100),
            student={"ce": 1.0, "jsd": 1.0},
            teacher={"ce": 1.0},
            group=group,
            vocab_start=2 * group.rank(),
            vocab_size=2 * group.size(),
        )
        grads = torch.autograd.grad(out.student_loss.sum() + out.teacher_loss.sum(), (student, teacher))
        assert all(grad.tolist() == [[0.0, 0.0]] * num_tokens for grad in grads)


def vocab_size_is_needed(group: dist.ProcessGroup) -> None:
    if group.size() > 1:
        with pytest.raises(ValueError, match="vocab_size must be given"):
            distillation_loss(torch.zeros(1, 2), None, torch.tensor([0]), student={"ce": 1.0}, group=group)


def fused(group: dist.ProcessGroup) -> None:
    """The fused form: this rank's rows of the head's gradient, the whole gradient of hidden states, collectives."""
    for bounds in BOUNDS[group.size()]:
        for mix in ("joint", "everything", "top_joint"):
            for recompute in (False, True):
                for sequence_parallel in (False, True):
                    check_fused(mix, bounds, group, recompute, sequence_parallel)


def check_fused(
    mix: str, bounds: list[int], group: dist.ProcessGroup, recompute: bool, sequence_parallel: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 6), (VOCAB, 6), (8, 10), (VOCAB, 10)]
    full = [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    labels = torch.randint(0, VOCAB, (8,), generator=generator)
    labels[2] = -100
    weight = torch.rand(8, generator=generator, dtype=torch.float64)
    terms = {"student": EAGER_MIXES[mix][0], "teacher": EAGER_MIXES[mix][1]}
    whole = distillation_loss(full[0] @ full[1].t(), full[2] @ full[3].t(), labels, token_weight=weight, **terms)
    exact = torch.autograd.grad(2 * whole.student_loss.sum() + 3 * whole.teacher_loss.sum(), full[:3])
    columns = shard_of(bounds, group.rank())
    share = 8 // group.size() if sequence_parallel else 8
    tokens = slice(group.rank() * share, (group.rank() + 1) * share) if sequence_parallel else slice(0, 8)
    mine = [
        x.detach()[part].clone().requires_grad_()
        for x, part in zip(full, [tokens, columns, tokens, columns], strict=True)
    ]
    with CountedCollectives() as forward_calls:
        out = linear_distillation_loss(
            *mine,
            labels,
            token_weight=weight,
            group=group,
            vocab_start=columns.start,
            vocab_size=VOCAB,
            recompute=recompute,
            sequence_parallel=sequence_parallel,
            memory_budget=3 * 2 * 8 * min(2, group.size()) * -(-VOCAB // group.size()),
            **terms,
        )
    total = 2 * out.student_loss.sum() + 3 * out.teacher_loss.sum()
    with CountedCollectives() as backward_calls:
        gradients = torch.autograd.grad(total, mine[:3])
    assert_near(out.student_loss.sum(), whole.student_loss.sum(), 1e-13)
    assert_near(out.teacher_loss.sum(), whole.teacher_loss.sum(), 1e-13)
    assert_near(gradients[0], exact[0][tokens], 1e-13)
    assert_near(gradients[1], exact[1][columns], 1e-13)
    assert_near(gradients[2], exact[2][tokens], 1e-13)
    check_fused_calls(forward_calls.counts, backward_calls.counts, mix, group.size(), recompute, sequence_parallel)


def check_fused_calls(
    forward: Counter, backward: Counter, mix: str, ranks: int, recompute: bool, sequence_parallel: bool
) -> None:
    """Three chunks of three tokens at most."""
    gathers = 3 * (2 if mix in TWO_PASS else 1) + 2 * sequence_parallel
    reductions = {"allreduce_": 3 * 2}
    if ranks == 1:
        assert forward == backward == {}
    elif recompute:
        assert (forward, backward) == ({"allgather_": gathers}, reductions)
    else:
        assert (forward, backward) == ({"allgather_": gathers} | reductions, {})


CASES = [
    every_mix,
    ranks_agree,
    tie_across_ranks,
    ties_of_the_likeliest,
    padding_differs,
    no_tokens,
    vocab_size_is_needed,
    fused,
]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_sharded(world_size: int) -> None:
    launch(CASES, world_size)
