"""The fused form against the form on logits, which is tested against the reference; one process."""

from dataclasses import dataclass

import pytest
import torch
from loss_cases import EAGER_MIXES, assert_near
from torch import Tensor

from megaokd.kernels import DistillationOutput, distillation_loss, linear_distillation_loss

VOCAB = 61


@dataclass
class Heads:
    """Hidden states, heads, labels and weights of T tokens."""

    student_hidden: Tensor
    student_weight: Tensor
    student_bias: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    labels: Tensor
    token_weight: Tensor

    def trained(self) -> list[Tensor]:
        """What gets a gradient, in the order of the fields."""
        return [self.student_hidden, self.student_weight, self.student_bias, self.teacher_hidden]


def make_heads(num_tokens: int, dtype: torch.dtype = torch.float64) -> Heads:
    generator = torch.Generator().manual_seed(num_tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    labels = torch.randint(0, VOCAB, (num_tokens,), generator=generator)
    labels[1::4] = -100
    return Heads(
        normal(num_tokens, 8).requires_grad_(),
        normal(VOCAB, 8).requires_grad_(),
        normal(VOCAB).requires_grad_(),
        normal(num_tokens, 12).requires_grad_(),
        normal(VOCAB, 12),
        labels,
        torch.rand(num_tokens, generator=generator, dtype=torch.float64) / num_tokens,
    )


def fused(heads: Heads, mix: str, **options: object) -> DistillationOutput:
    return linear_distillation_loss(
        heads.student_hidden,
        heads.student_weight,
        heads.teacher_hidden,
        heads.teacher_weight,
        heads.labels,
        student=EAGER_MIXES[mix][0],
        teacher=EAGER_MIXES[mix][1],
        token_weight=heads.token_weight,
        student_bias=heads.student_bias,
        **options,  # type: ignore[arg-type]
    )


def unfused(heads: Heads, mix: str, temperature: float = 1.0) -> DistillationOutput:
    return distillation_loss(
        torch.nn.functional.linear(heads.student_hidden, heads.student_weight, heads.student_bias),
        torch.nn.functional.linear(heads.teacher_hidden, heads.teacher_weight),
        heads.labels,
        student=EAGER_MIXES[mix][0],
        teacher=EAGER_MIXES[mix][1],
        temperature=temperature,
        token_weight=heads.token_weight,
    )


def gradients(out: DistillationOutput, heads: Heads) -> tuple[Tensor, ...]:
    """Under different upstream gradients for the two losses."""
    return torch.autograd.grad(3 * out.student_loss.sum() + 0.25 * out.teacher_loss.sum(), heads.trained())


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("mix", ["joint", "everything"])
@pytest.mark.parametrize("tokens_at_a_time", [1, 5, 100])
def test_matches_the_unfused_form(mix: str, tokens_at_a_time: int, recompute: bool) -> None:
    heads = make_heads(13)
    budget = tokens_at_a_time * 2 * VOCAB * 8
    out = fused(heads, mix, temperature=2.0, recompute=recompute, memory_budget=budget)
    expected = unfused(heads, mix, temperature=2.0)
    assert out.student_loss.shape == (torch.Size([13]) if recompute else torch.Size([]))
    assert_near(out.student_loss.sum(), expected.student_loss.sum(), 1e-13)
    assert_near(out.teacher_loss.sum(), expected.teacher_loss.sum(), 1e-13)
    for name, value in expected.metrics.items():
        assert_near(out.metrics[name], value, 1e-13)
    for ours, exact in zip(gradients(out, heads), gradients(expected, heads), strict=True):
        assert_near(ours, exact, 1e-13)


def test_recomputed_losses_differentiate_per_token() -> None:
    heads = make_heads(7)
    upstream = torch.linspace(0, 1, 7, dtype=torch.float64)
    out, expected = fused(heads, "joint", recompute=True), unfused(heads, "joint")
    ours, exact = (
        torch.autograd.grad((x.student_loss * upstream + x.teacher_loss).sum(), heads.trained())
        for x in (out, expected)
    )
    for gradient, wanted in zip(ours, exact, strict=True):
        assert_near(gradient, wanted, 1e-13)


def test_gradients_accumulate_over_micro_batches() -> None:
    """Two halves add up to the whole in .grad of a head that is also the embedding."""
    embedding = torch.randn(VOCAB, 6, dtype=torch.float64, requires_grad=True)
    tokens, labels = torch.arange(10), torch.arange(10, 20)
    teacher = torch.randn(10, 6, dtype=torch.float64)

    def step(part: slice) -> Tensor:
        hidden = torch.tanh(embedding[tokens[part]])
        return linear_distillation_loss(
            hidden, embedding, teacher[part], embedding.detach(), labels[part], student={"ce": 1.0, "forward_kl": 1.0}
        ).student_loss

    (whole,) = torch.autograd.grad(step(slice(0, 10)), embedding)
    for part in (slice(0, 3), slice(3, 10)):
        step(part).backward()
    assert embedding.grad is not None
    assert_near(embedding.grad, whole, 1e-13)


def test_frozen_teacher_and_no_teacher() -> None:
    heads = make_heads(6)
    arguments = (heads.student_hidden, heads.student_weight)
    frozen = linear_distillation_loss(
        *arguments, heads.teacher_hidden, heads.teacher_weight, heads.labels, student={"forward_kl": 1.0}
    )
    assert not frozen.teacher_loss.requires_grad
    (frozen.student_loss + frozen.teacher_loss).backward()
    assert heads.teacher_hidden.grad is None
    alone = linear_distillation_loss(*arguments, None, None, heads.labels, student={"ce": 1.0})
    expected = torch.nn.functional.cross_entropy(
        heads.student_hidden @ heads.student_weight.t(), heads.labels, reduction="sum"
    )
    assert_near(alone.student_loss, expected, 1e-13)


def test_frozen_head_and_evaluation() -> None:
    """Only what requires a gradient gets one; under no_grad nothing does."""
    heads = make_heads(6)
    heads.student_weight.requires_grad_(False)
    heads.student_bias.requires_grad_(False)
    out = fused(heads, "joint")
    (out.student_loss + out.teacher_loss).backward()
    assert heads.student_weight.grad is None
    assert heads.student_hidden.grad is not None
    with torch.no_grad():
        assert not fused(heads, "joint").student_loss.requires_grad


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_no_loss_tokens(num_tokens: int) -> None:
    heads = make_heads(num_tokens)
    heads.labels.fill_(-100)
    out = fused(heads, "everything")
    assert out.student_loss.item() == 0.0
    assert all(bool((gradient == 0).all()) for gradient in gradients(out, heads))


def test_backward_runs_once() -> None:
    heads = make_heads(4)
    out = fused(heads, "joint")
    out.student_loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="recompute=True"):
        out.student_loss.backward()


@pytest.mark.parametrize("recompute", [False, True])
def test_autocast(recompute: bool) -> None:
    """fp32 hidden states and weights, bf16 products: as good as the unfused form under autocast."""
    heads = make_heads(64, torch.float32)
    double = make_heads(64)
    expected = gradients(unfused(double, "joint"), double)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = unfused(heads, "joint")
        out = fused(heads, "joint", recompute=recompute, memory_budget=16 * 2 * VOCAB * 4)
    for ours, torchs, wanted in zip(gradients(out, heads), gradients(plain, heads), expected, strict=True):
        assert ours.dtype == torch.float32
        error, allowed = (float((x.double() - wanted).norm()) for x in (ours, torchs))
        assert error <= 1.1 * allowed


def test_half_precision_does_not_underflow() -> None:
    """Weights of 1 / (a million tokens) in fp16: gradients survive once the loss is scaled."""
    heads = make_heads(8, torch.float16)
    double = make_heads(8)
    for name in ("student_hidden", "student_weight", "student_bias", "teacher_hidden", "teacher_weight"):
        getattr(double, name).data.copy_(getattr(heads, name).double())
    heads.token_weight = double.token_weight = torch.full((8,), 1e-9, dtype=torch.float64)
    out, exact = fused(heads, "joint"), unfused(double, "joint")
    ours = torch.autograd.grad((out.student_loss + out.teacher_loss) * 1e9, heads.trained())
    wanted = torch.autograd.grad((exact.student_loss + exact.teacher_loss).sum() * 1e9, double.trained())
    for gradient, expected in zip(ours, wanted, strict=True):
        assert float((gradient.double() - expected).norm()) <= 2e-3 * float(expected.norm())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher_weight": None}, "together"),
        ({"labels": torch.zeros(2, 2, dtype=torch.int64)}, "one row"),
        ({"student_hidden": torch.zeros(4, 3)}, "student_hidden has shape"),
        ({"student_weight": torch.zeros(7, 2, dtype=torch.float64)}, "cast one"),
        ({"teacher_weight": torch.zeros(8, 3)}, "say so with vocab_size"),
        ({"student_bias": torch.zeros(6)}, "student_bias"),
        ({"token_weight": torch.zeros(3)}, "token_weight"),
        ({"student": {"cf": 1.0}}, "unknown term"),
        ({"labels": torch.full((4,), 7)}, "label 7"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    arguments = {
        "student_hidden": torch.zeros(4, 2),
        "student_weight": torch.zeros(7, 2),
        "teacher_hidden": torch.zeros(4, 3),
        "teacher_weight": torch.zeros(7, 3),
        "labels": torch.zeros(4, dtype=torch.int64),
        "student": {"ce": 1.0},
    }
    with pytest.raises(ValueError, match=message):
        linear_distillation_loss(**(arguments | change))
