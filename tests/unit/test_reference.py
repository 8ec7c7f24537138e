"""The reference itself: decoder against transformers, objective against closed forms, optimizer by hand."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.reference.okd import (
    LINEARS,
    Batch,
    Dims,
    Group,
    History,
    Objective,
    decode,
    divergence,
    learning_rate,
    losses,
    random_lora,
    random_weights,
    train,
)

TEACHER = Dims(
    hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48, vocab_size=61
)
STUDENT = Dims(
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    vocab_size=61,
    tied_head=True,
)
F64 = torch.float64


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


def make_batches(count: int, *, size: int = 4, length: int = 11, seed: int = 0) -> list[Batch]:
    """Random tokens; the sequences end at different lengths and their first tokens are a prompt, without loss."""
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        text = torch.randint(TEACHER.vocab_size, (size, length + 1), generator=draw)
        tokens, labels = text[:, :-1].clone(), text[:, 1:].clone()
        for row in range(size):
            labels[row, : 1 + row % 3] = -100
            labels[row, length - row :] = -100
        batches.append((tokens, labels))
    return batches


# --- decoder ----------------------------------------------------------------------------------------------------------

CASES: dict[str, tuple[dict[str, Any], dict[str, bool]]] = {
    "multi-head": ({}, {}),
    "grouped": ({"num_kv_heads": 2}, {}),
    "one kv head, tied": ({"num_kv_heads": 1, "tied_head": True}, {}),
    "attention bias": ({"num_kv_heads": 2}, {"attention_bias": True}),
    "all biases, wide heads, theta": (
        {"num_kv_heads": 2, "head_dim": 12, "rope_theta": 500.0, "norm_eps": 1e-3, "tied_head": True},
        {"attention_bias": True, "mlp_bias": True},
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, dtype: torch.dtype) -> None:
    transformers = pytest.importorskip("transformers")
    changes, biases = CASES[case]
    dims = replace(TEACHER, num_kv_heads=4)
    dims = replace(dims, **changes)
    weights = {name: w.to(dtype) for name, w in random_weights(dims, seed=3, **biases, scale=0.3).items()}
    config = transformers.LlamaConfig(
        hidden_size=dims.hidden_size,
        num_hidden_layers=dims.num_layers,
        num_attention_heads=dims.num_heads,
        num_key_value_heads=dims.num_kv_heads,
        head_dim=dims.head_dim,
        intermediate_size=dims.intermediate_size,
        vocab_size=dims.vocab_size,
        rms_norm_eps=dims.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": dims.rope_theta},
        tie_word_embeddings=dims.tied_head,
        attn_implementation="sdpa",  # eager rounds its softmax to fp32
        **biases,
    )
    model = transformers.LlamaForCausalLM(config).to(dtype).eval()
    tied = {"lm_head.weight": weights["model.embed_tokens.weight"]} if dims.tied_head else {}
    model.load_state_dict({**weights, **tied}, strict=True)
    if dtype == F64:
        use_exact_norms(model)
    tokens = make_batches(1, length=17)[0][0]
    with torch.no_grad():
        expected = model(tokens).logits
    assert expected.dtype == dtype
    logits = decode(weights, dims, tokens)
    assert logits.dtype == dtype
    assert relative(logits, expected) < (1e-10 if dtype == F64 else 1e-5)


def use_exact_norms(model: Any) -> None:
    """The norms of transformers round to fp32, whatever the dtype of the model; put torch's own in their place."""
    exchanged = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "LlamaRMSNorm":
                norm = nn.RMSNorm(child.weight.shape[0], eps=child.variance_epsilon, dtype=F64)
                norm.weight = child.weight
                setattr(parent, name, norm)
                exchanged += 1
    assert exchanged == 2 * TEACHER.num_layers + 1


def test_the_future_and_padding_rows_have_no_influence() -> None:
    weights = random_weights(TEACHER, seed=0)
    tokens = make_batches(1)[0][0]
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % TEACHER.vocab_size
    before, after = decode(weights, TEACHER, tokens), decode(weights, TEACHER, changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] - after[:, 6:]).abs().min() > 0
    padded = dict(weights)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        padded[name] = torch.cat([weights[name], torch.full((3, TEACHER.hidden_size), math.nan, dtype=F64)])
    # the padded matrix may take another path through BLAS
    torch.testing.assert_close(decode(padded, TEACHER, tokens), before, rtol=1e-12, atol=1e-13)


# --- LoRA -------------------------------------------------------------------------------------------------------------


def test_adapted_teacher_starts_as_the_frozen_one() -> None:
    weights = random_weights(TEACHER, seed=1, attention_bias=True)
    lora = random_lora(TEACHER, seed=2, rank=3, layers=[1, 2])
    assert len(lora) == 2 * 2 * len(LINEARS)
    tokens = make_batches(1)[0][0]
    assert torch.equal(decode(weights, TEACHER, tokens, lora), decode(weights, TEACHER, tokens))


def test_lora_equals_merged_weights() -> None:
    weights = random_weights(TEACHER, seed=1, attention_bias=True, mlp_bias=True)
    lora = random_lora(TEACHER, seed=2, rank=3, layers=range(3), zero_up=False)
    merged = dict(weights)
    for name in lora:
        if name.endswith(".lora_A"):
            base = name.removesuffix(".lora_A")
            merged[f"{base}.weight"] = weights[f"{base}.weight"] + (6.0 / 3) * lora[f"{base}.lora_B"] @ lora[name]
    tokens = make_batches(1)[0][0]
    adapted = decode(weights, TEACHER, tokens, lora, alpha=6.0)
    assert relative(adapted, decode(merged, TEACHER, tokens)) < 1e-12
    assert relative(adapted, decode(weights, TEACHER, tokens)) > 1e-3


def test_bottlenecks_start_as_nothing_and_move_what_follows_them() -> None:
    weights = random_weights(TEACHER, seed=1)
    tokens = make_batches(1)[0][0]
    frozen = decode(weights, TEACHER, tokens)
    down, up = torch.randn(3, 32, dtype=F64), torch.randn(32, 3, dtype=F64)
    for name in ("model.layers.1", "model"):
        modules = {f"{name}.down": down, f"{name}.up": torch.zeros_like(up)}
        assert torch.equal(decode(weights, TEACHER, tokens, modules), frozen)
        assert relative(decode(weights, TEACHER, tokens, {**modules, f"{name}.up": up}), frozen) > 1e-2
    # Behind the norm of unit weights, which leaves rms 1, by torch's own functions.
    plain = {**weights, "model.norm.weight": torch.ones(32, dtype=F64), "lm_head.weight": torch.eye(61, 32, dtype=F64)}
    h = decode(plain, TEACHER, tokens)[..., :32]
    expected = h + 2.0 * nn.functional.silu(nn.functional.rms_norm(h, (32,), eps=TEACHER.norm_eps) @ down.T) @ up.T
    adapted = decode(plain, TEACHER, tokens, {"model.down": down, "model.up": up}, alpha=6.0)[..., :32]
    torch.testing.assert_close(adapted, expected)


def test_the_anchor_refers_to_the_original() -> None:
    t, s = random_logits()
    labels = torch.zeros(7, dtype=torch.long)
    original = t.detach() + torch.randn(7, 23, dtype=F64)
    with_anchor = Objective(temperature=2.0, teacher={**Objective().teacher, "anchor": 0.5})
    _, without = losses(s, t, labels, Objective(temperature=2.0))
    _, anchored = losses(s, t, labels, with_anchor, original)
    drift = nn.functional.kl_div(original.log_softmax(-1), t.log_softmax(-1), log_target=True, reduction="batchmean")
    torch.testing.assert_close(anchored - without, 0.5 * drift)


# --- objective --------------------------------------------------------------------------------------------------------


def closed_form(term: str, t: Tensor, s: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Value, d/dt and d/ds of a divergence at temperature 1, as derived by hand."""
    p, q = t.softmax(-1), s.softmax(-1)
    lp, lq = p.log(), q.log()
    if term == "forward_kl":
        value = (p * (lp - lq)).sum(-1, keepdim=True)
        return value, p * (lp - lq - value), q - p
    if term == "reverse_kl":
        value = (q * (lq - lp)).sum(-1, keepdim=True)
        return value, p - q, q * (lq - lp - value)
    if term == "tvd":
        g = (p - q).sign()
        value = 0.5 * (p - q).abs().sum(-1, keepdim=True)
        dt, ds = (0.5 * own * (g - (own * g).sum(-1, keepdim=True)) for own in (p, q))
        return value, dt, -ds
    if term == "top":
        inside = t >= t.topk(4).values[..., -1:]
        p0, q0 = ((x * ~inside).sum(-1, keepdim=True) for x in (p, q))
        ratio = torch.where(inside, lp - lq, (p0 / q0).log())
        value = (p * ratio).sum(-1, keepdim=True)
        return value, p * (ratio - value), q - torch.where(inside, p, q * p0 / q0)
    if term.startswith("skew"):
        own, other = (p, q) if term == "skew_forward_kl" else (q, p)
        m = beta * own + (1 - beta) * other
        value = (own * (own / m).log()).sum(-1, keepdim=True)
        overlap = (p * q / m).sum(-1, keepdim=True)
        d_own = own * ((own / m).log() - beta * own / m - (value - (1 - (1 - beta) * overlap)))
        d_other = (1 - beta) * other * (overlap - own / m)
        return value, *((d_own, d_other) if term == "skew_forward_kl" else (d_other, d_own))
    lm = (beta * p + (1 - beta) * q).log()
    of_p = (p * (lp - lm)).sum(-1, keepdim=True)
    of_q = (q * (lq - lm)).sum(-1, keepdim=True)
    value = beta * of_p + (1 - beta) * of_q
    return value, beta * p * (lp - lm - of_p), (1 - beta) * q * (lq - lm - of_q)


def random_logits(seed: int = 0, tokens: int = 7) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    t, s = (3 * torch.randn(tokens, 23, generator=draw, dtype=F64) for _ in range(2))
    return t.requires_grad_(), s.requires_grad_()


@pytest.mark.parametrize("tau", [1.0, 2.5])
@pytest.mark.parametrize(
    "term", ["forward_kl", "reverse_kl", "tvd", "jsd", "skew_forward_kl", "skew_reverse_kl", "top"]
)
def test_divergences_equal_closed_forms(term: str, tau: float) -> None:
    t, s = random_logits()
    named = {"jsd": "jsd(0.3)", "top": "forward_kl_top(4)"}.get(term, f"{term}(0.3)" if "skew" in term else term)
    value = divergence(named, t, s, tau)
    dt, ds = torch.autograd.grad(value.sum(), (t, s))
    expected, expected_dt, expected_ds = closed_form(term, t.detach() / tau, s.detach() / tau, beta=0.3)
    torch.testing.assert_close(value, tau**2 * expected.squeeze(-1), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(dt, tau * expected_dt, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(ds, tau * expected_ds, rtol=1e-11, atol=1e-13)


def test_both_losses_and_their_gradients() -> None:
    """The weighted sums over the loss tokens, their number as divisor, ce at temperature 1, stop-gradients."""
    tau = 1.7
    t, s = random_logits(seed=1, tokens=10)
    labels = torch.tensor([[3, -100, 0, 22, 7], [-100, -100, 5, 5, -100]])
    objective = Objective(
        student={"ce": 0.5, "forward_kl": 2.0, "jsd(0.3)": 0.7},
        teacher={"ce": 0.25, "reverse_kl": 0.3, "forward_kl": 0.0},
        temperature=tau,
    )
    student_loss, teacher_loss = losses(s.view(2, 5, -1), t.view(2, 5, -1), labels, objective)
    grads_of_student_loss = torch.autograd.grad(student_loss, (t, s), retain_graph=True, allow_unused=True)
    grads_of_teacher_loss = torch.autograd.grad(teacher_loss, (t, s), allow_unused=True)
    assert grads_of_student_loss[0] is None
    assert grads_of_teacher_loss[1] is None

    y = labels.flatten()
    scored = (y >= 0).double()[:, None] / 6
    onehot = nn.functional.one_hot(y.clamp(min=0), 23).double()
    terms = {k: closed_form(k, t.detach() / tau, s.detach() / tau, 0.3) for k in ("forward_kl", "reverse_kl", "jsd")}
    q, p = s.detach().softmax(-1), t.detach().softmax(-1)
    ce_q, ce_p = (-(onehot * own.log()).sum(-1, keepdim=True) for own in (q, p))

    expected = scored * (0.5 * ce_q + tau**2 * (2.0 * terms["forward_kl"][0] + 0.7 * terms["jsd"][0]))
    torch.testing.assert_close(student_loss, expected.sum())
    torch.testing.assert_close(teacher_loss, (scored * (0.25 * ce_p + 0.3 * tau**2 * terms["reverse_kl"][0])).sum())
    ds = scored * (0.5 * (q - onehot) + tau * (2.0 * terms["forward_kl"][2] + 0.7 * terms["jsd"][2]))
    torch.testing.assert_close(grads_of_student_loss[1], ds, rtol=1e-11, atol=1e-14)
    dt = scored * (0.25 * (p - onehot) + 0.3 * tau * terms["reverse_kl"][1])
    torch.testing.assert_close(grads_of_teacher_loss[0], dt, rtol=1e-11, atol=1e-14)


def test_bad_objectives_are_refused() -> None:
    t, s = random_logits()
    labels = torch.zeros(7, dtype=torch.long)
    with pytest.raises(ValueError, match="unknown term 'kl'"):
        losses(s, t, labels, Objective(student={"kl": 1.0}))
    with pytest.raises(ValueError, match="no teacher"):
        losses(s, None, labels, Objective())
    with pytest.raises(ValueError, match="no loss token"):
        losses(s, t, labels - 100, Objective())


# --- training ---------------------------------------------------------------------------------------------------------


def test_learning_rates() -> None:
    group = Group(lr=2.0, warmup_steps=4, min_lr_ratio=0.1)
    assert [learning_rate(group, step, 12) for step in range(5)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert learning_rate(group, 8, 12) == pytest.approx(2.0 * 0.55)
    assert learning_rate(replace(group, schedule="linear"), 10, 12) == pytest.approx(2.0 * (0.1 + 0.9 * 0.25))
    assert learning_rate(replace(group, schedule="constant"), 10, 12) == 2.0
    assert learning_rate(group, 12, 12) == pytest.approx(0.2)


def run(
    batches: list[Batch],
    *,
    dtype: torch.dtype = F64,
    student_group: Group | None = None,
    online_group: Group | None = None,
    frozen: bool = False,
    teacher: bool = True,
    objective: Objective | None = None,
) -> History:
    return train(
        random_weights(TEACHER, seed=1) if teacher else None,
        random_weights(STUDENT, seed=2, attention_bias=True),
        None if frozen else random_lora(TEACHER, seed=3, rank=2, layers=[2]),
        batches,
        student_dims=STUDENT,
        teacher_dims=TEACHER if teacher else None,
        objective=objective,
        student_group=student_group or Group(lr=1e-2),
        online_group=online_group or Group(lr=1e-2, weight_decay=0.0),
        dtype=dtype,
    )


def gradients(tokens: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the default objective at the starting point of `run`."""
    student = {k: w.requires_grad_() for k, w in random_weights(STUDENT, seed=2, attention_bias=True).items()}
    lora = {k: w.requires_grad_() for k, w in random_lora(TEACHER, seed=3, rank=2, layers=[2]).items()}
    teacher_logits = decode(random_weights(TEACHER, seed=1), TEACHER, tokens, lora)
    student_loss, teacher_loss = losses(decode(student, STUDENT, tokens), teacher_logits, labels, Objective())
    student_grads = torch.autograd.grad(student_loss, list(student.values()))
    lora_grads = torch.autograd.grad(teacher_loss, list(lora.values()))
    return dict(zip(student, student_grads, strict=True)), dict(zip(lora, lora_grads, strict=True))


def test_one_step_by_hand() -> None:
    """AdamW's first step: decay of matrices only, each group clipped by its own norm, then lr * g / (|g| + eps)."""
    batch = make_batches(1)[0]
    eps, clip = 0.01, 0.05  # a large eps, so that the update shows the scale of the gradient
    student_group = Group(lr=0.1, eps=eps, clip=clip, weight_decay=0.3)
    online_group = Group(lr=0.2, eps=eps, clip=clip / 10, weight_decay=0.2, warmup_steps=2)
    history = run([batch], student_group=student_group, online_group=online_group)
    start = (random_weights(STUDENT, seed=2, attention_bias=True), random_lora(TEACHER, seed=3, rank=2, layers=[2]))
    norms = (history.student_grad_norm[0], history.online_grad_norm[0])
    for grads, before, after, group, norm, lr in zip(
        gradients(*batch),
        start,
        (history.student, history.online),
        (student_group, online_group),
        norms,
        (0.1, 0.1),
        strict=True,
    ):
        assert norm == pytest.approx(math.sqrt(sum(float((g**2).sum()) for g in grads.values())), rel=1e-12)
        assert norm > group.clip
        assert set(after) == set(before)
        for name, grad in grads.items():
            g = grad * group.clip / (norm + 1e-6)
            decay = lr * group.weight_decay if grad.ndim == 2 else 0.0
            expected = before[name] * (1 - decay) - lr * g / (g.abs() + eps)
            torch.testing.assert_close(after[name], expected, rtol=1e-10, atol=1e-12)


def test_a_small_gradient_is_not_scaled_up() -> None:
    batches = make_batches(3)
    loose, unclipped = (Group(lr=1e-2, eps=0.01, clip=clip) for clip in (1e4, 0.0))
    a = run(batches, student_group=loose, online_group=loose)
    b = run(batches, student_group=unclipped, online_group=unclipped)
    assert a.student_grad_norm == b.student_grad_norm
    for name in a.student:
        assert torch.equal(a.student[name], b.student[name])


def test_gradients_do_not_pile_up() -> None:
    batch = make_batches(1)[0]
    still = Group(lr=0.0, weight_decay=0.0)
    history = run([batch] * 3, student_group=still, online_group=still)
    for norms in (history.student_grad_norm, history.online_grad_norm):
        assert norms[0] == norms[1] == norms[2] > 0


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=["fp32", "fp64"])
def test_a_run_decreases_both_losses(dtype: torch.dtype) -> None:
    history = run(make_batches(1) * 20, dtype=dtype)
    for values in (history.student_loss, history.teacher_loss):
        assert len(values) == 20
        assert values[-1] < 0.8 * values[0]
    assert all(later < earlier for earlier, later in pairwise(history.student_loss[:5]))
    assert all(norm > 0 for norm in (*history.student_grad_norm, *history.online_grad_norm))
    assert all(w.dtype == dtype and not w.requires_grad for w in (*history.student.values(), *history.online.values()))
    assert "lm_head.weight" not in history.student


def test_fp32_follows_fp64() -> None:
    batches = make_batches(5)
    single, double = run(batches, dtype=torch.float32), run(batches)
    assert single.student_loss == pytest.approx(double.student_loss, rel=1e-5)
    assert single.teacher_loss == pytest.approx(double.teacher_loss, rel=1e-5)
    assert single.student_grad_norm == pytest.approx(double.student_grad_norm, rel=1e-4)
    assert single.online_grad_norm == pytest.approx(double.online_grad_norm, rel=1e-4)


def test_plain_distillation_is_online_distillation_that_does_not_move() -> None:
    batches = make_batches(4)
    still = run(batches, objective=Objective(teacher={}))
    frozen = run(batches, frozen=True, objective=Objective(teacher={}))
    moving = run(batches)
    assert still.student_loss == frozen.student_loss
    assert still.online_grad_norm == [0.0] * 4
    assert frozen.online == {}
    assert moving.student_loss[0] == frozen.student_loss[0]
    assert moving.student_loss[-1] != frozen.student_loss[-1]


def test_supervised_needs_no_teacher() -> None:
    batches = make_batches(4)
    history = run(batches, teacher=False, frozen=True, objective=Objective(student={"ce": 1.0}))
    with_teacher = run(batches, frozen=True, objective=Objective(student={"ce": 1.0}))
    assert history.student_loss == with_teacher.student_loss
    assert history.teacher_loss == [0.0] * 4


def test_the_given_weights_stay_as_they_were() -> None:
    student, lora = random_weights(STUDENT, seed=2), random_lora(TEACHER, seed=3, rank=2, layers=[2])
    history = train(
        random_weights(TEACHER, seed=1), student, lora, make_batches(2), student_dims=STUDENT, teacher_dims=TEACHER
    )
    for name, weight in random_weights(STUDENT, seed=2).items():
        assert torch.equal(student[name], weight)
        assert not torch.equal(history.student[name], weight)
    for name, weight in random_lora(TEACHER, seed=3, rank=2, layers=[2]).items():
        assert torch.equal(lora[name], weight)
