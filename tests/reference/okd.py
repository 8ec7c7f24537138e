"""Online knowledge distillation in one process, in plain torch: what the parallel engine must agree with.

Everything is written out from full weights under Hugging Face names: a Llama-family decoder, online modules on the
teacher (LoRA, bottlenecks behind layers or behind the final norm), the two objectives with autograd, AdamW with two
groups. It imports nothing of the project, so that a mistake there cannot hide here. The dtype of the weights is the
dtype of the run: fp32 to compare with, fp64 to judge both.

Shapes: B sequences, T positions, V vocabulary, N loss tokens, D hidden size, H heads, K key-value heads, E head size.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

IGNORE = -100
LINEARS = {
    "q_proj": "self_attn",
    "k_proj": "self_attn",
    "v_proj": "self_attn",
    "o_proj": "self_attn",
    "gate_proj": "mlp",
    "up_proj": "mlp",
    "down_proj": "mlp",
}
Weights = Mapping[str, Tensor]
Batch = tuple[Tensor, Tensor]
"""(tokens [B, T], labels [B, T]); labels[b, t] is the token that follows tokens[b, t], or -100."""


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Dims:
    """The numbers of a decoder that its weights do not tell. Biases exist where the weights hold them."""

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    tied_head: bool = False


def decode(weights: Weights, dims: Dims, tokens: Tensor, online: Weights | None = None, alpha: float = 16.0) -> Tensor:
    """Logits [B, T, V] of tokens [B, T].

    Rows of the embedding and of the head past `dims.vocab_size` are padding: they get no logit.
    """
    w = {**weights, **(online or {})}
    x_BTD = w["model.embed_tokens.weight"][tokens]
    cos, sin = rope(tokens.shape[1], dims, x_BTD.dtype)
    for layer in range(dims.num_layers):
        name = f"model.layers.{layer}"
        h_BTD = rms_norm(x_BTD, w[f"{name}.input_layernorm.weight"], dims)
        x_BTD = x_BTD + attention(w, f"{name}.self_attn", dims, h_BTD, cos, sin, alpha)
        h_BTD = rms_norm(x_BTD, w[f"{name}.post_attention_layernorm.weight"], dims)
        gate = linear(w, f"{name}.mlp.gate_proj", h_BTD, alpha)
        up = linear(w, f"{name}.mlp.up_proj", h_BTD, alpha)
        x_BTD = x_BTD + linear(w, f"{name}.mlp.down_proj", gate * torch.sigmoid(gate) * up, alpha)
        x_BTD = bottleneck(w, name, x_BTD, dims, alpha)
    head = w["model.embed_tokens.weight"] if dims.tied_head else w["lm_head.weight"]
    h_BTD = bottleneck(w, "model", rms_norm(x_BTD, w["model.norm.weight"], dims), dims, alpha)
    return h_BTD @ head[: dims.vocab_size].T


def bottleneck(w: Weights, name: str, x: Tensor, dims: Dims, alpha: float) -> Tensor:
    """x + (alpha / rank) U silu(D x / rms(x)), where `w` holds such a module; x elsewhere."""
    if f"{name}.down" not in w:
        return x
    down, up = w[f"{name}.down"], w[f"{name}.up"]
    inner = (x / (x.pow(2).mean(-1, keepdim=True) + dims.norm_eps).sqrt()) @ down.T
    return x + (alpha / down.shape[0]) * ((inner / (1 + torch.exp(-inner))) @ up.T)


def linear(w: Weights, name: str, x: Tensor, alpha: float) -> Tensor:
    """W x + bias + (alpha / rank) B A x; the bias and the low-rank term only where `w` holds them."""
    y = x @ w[f"{name}.weight"].T
    if f"{name}.bias" in w:
        y = y + w[f"{name}.bias"]
    if f"{name}.lora_A" in w:
        down, up = w[f"{name}.lora_A"], w[f"{name}.lora_B"]
        y = y + (alpha / down.shape[0]) * ((x @ down.T) @ up.T)
    return y


def attention(w: Weights, name: str, dims: Dims, x_BTD: Tensor, cos: Tensor, sin: Tensor, alpha: float) -> Tensor:
    """Causal grouped-query attention with its softmax written out."""
    B, T, _ = x_BTD.shape

    def project(which: str, heads: int) -> Tensor:
        y = linear(w, f"{name}.{which}", x_BTD, alpha)
        return y.view(B, T, heads, dims.head_dim).transpose(1, 2)

    q_BHTE = rotate(project("q_proj", dims.num_heads), cos, sin)
    k_BKTE = rotate(project("k_proj", dims.num_kv_heads), cos, sin)
    v_BKTE = project("v_proj", dims.num_kv_heads)
    group = dims.num_heads // dims.num_kv_heads  # consecutive query heads share one key-value head
    k_BHTE = k_BKTE.repeat_interleave(group, dim=1)
    v_BHTE = v_BKTE.repeat_interleave(group, dim=1)

    scores_BHTT = q_BHTE @ k_BHTE.transpose(2, 3) / math.sqrt(dims.head_dim)
    future_TT = torch.ones(T, T, dtype=torch.bool, device=x_BTD.device).triu(1)
    weights_BHTT = scores_BHTT.masked_fill(future_TT, -math.inf).softmax(-1)
    y_BTD = (weights_BHTT @ v_BHTE).transpose(1, 2).reshape(B, T, dims.num_heads * dims.head_dim)
    return linear(w, f"{name}.o_proj", y_BTD, alpha)


def rms_norm(x: Tensor, weight: Tensor, dims: Dims) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + dims.norm_eps) * weight


def rope(length: int, dims: Dims, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, E]. The angles are fp32 in every dtype, as Hugging Face computes them."""
    exponent = torch.arange(0, dims.head_dim, 2, dtype=torch.float32) / dims.head_dim
    angles = torch.arange(length, dtype=torch.float32)[:, None] * (1.0 / dims.rope_theta**exponent)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + E/2]), the half-split convention."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


# --- random weights for tests -----------------------------------------------------------------------------------------


def random_weights(
    dims: Dims, seed: int, *, attention_bias: bool = False, mlp_bias: bool = False, scale: float = 0.1
) -> dict[str, Tensor]:
    """Full random weights in fp64 (`.float()` them for fp32); norms about one, biases not zero."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    weights = {"model.embed_tokens.weight": normal(dims.vocab_size, dims.hidden_size) * scale}
    for layer in range(dims.num_layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = 1 + normal(dims.hidden_size) * scale
        for linear_name, (out_size, in_size) in linear_shapes(dims).items():
            name = f"model.layers.{layer}.{LINEARS[linear_name]}.{linear_name}"
            weights[f"{name}.weight"] = normal(out_size, in_size) * scale
            if attention_bias if LINEARS[linear_name] == "self_attn" else mlp_bias:
                weights[f"{name}.bias"] = normal(out_size) * scale
    weights["model.norm.weight"] = 1 + normal(dims.hidden_size) * scale
    if not dims.tied_head:
        weights["lm_head.weight"] = normal(dims.vocab_size, dims.hidden_size) * scale
    return weights


def random_lora(
    dims: Dims,
    seed: int,
    *,
    rank: int,
    layers: Iterable[int],
    targets: Iterable[str] = tuple(LINEARS),
    zero_up: bool = True,
    scale: float = 0.1,
) -> dict[str, Tensor]:
    """LoRA weights in fp64 for `targets` of the given layers: A random, B zero (or random, if not `zero_up`)."""
    draw = torch.Generator().manual_seed(seed)
    targets = list(targets)
    lora = {}
    for layer in layers:
        for target in targets:
            out_size, in_size = linear_shapes(dims)[target]
            name = f"model.layers.{layer}.{LINEARS[target]}.{target}"
            lora[f"{name}.lora_A"] = torch.randn(rank, in_size, generator=draw, dtype=torch.float64) * scale
            up = torch.randn(out_size, rank, generator=draw, dtype=torch.float64) * scale
            lora[f"{name}.lora_B"] = torch.zeros_like(up) if zero_up else up
    return lora


def linear_shapes(dims: Dims) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer of a decoder layer."""
    query, key_value = dims.num_heads * dims.head_dim, dims.num_kv_heads * dims.head_dim
    return {
        "q_proj": (query, dims.hidden_size),
        "k_proj": (key_value, dims.hidden_size),
        "v_proj": (key_value, dims.hidden_size),
        "o_proj": (dims.hidden_size, query),
        "gate_proj": (dims.intermediate_size, dims.hidden_size),
        "up_proj": (dims.intermediate_size, dims.hidden_size),
        "down_proj": (dims.hidden_size, dims.intermediate_size),
    }


# --- the objective ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Weights of the terms of both losses.

    Terms: ce, forward_kl, reverse_kl, tvd, jsd(BETA), skew_forward_kl(ALPHA), skew_reverse_kl(ALPHA),
    forward_kl_top(K) and, of the teacher alone, anchor: KL(p || original p) at temperature 1. Without parentheses beta
    is 0.5, alpha 0.1, K 50.
    """

    student: Mapping[str, float] = field(default_factory=lambda: {"ce": 1.0, "forward_kl": 1.0})
    teacher: Mapping[str, float] = field(default_factory=lambda: {"ce": 1.0, "forward_kl": 0.1})
    temperature: float = 1.0


def divergence(term: str, teacher_logits: Tensor, student_logits: Tensor, temperature: float) -> Tensor:
    """tau^2 D(p, q) [N] of logits [N, V], differentiable in both; forward_kl is KL(teacher || student)."""
    kind, _, option = term.rstrip(")").partition("(")
    share = float(option) if option else {"jsd": 0.5, "forward_kl_top": 50}.get(kind, 0.1)
    lp = (teacher_logits / temperature).log_softmax(-1)
    lq = (student_logits / temperature).log_softmax(-1)
    if kind == "forward_kl":
        value = kl(lp, lq)
    elif kind == "reverse_kl":
        value = kl(lq, lp)
    elif kind == "jsd":
        lm = mixed(share, lp, lq)
        value = share * kl(lp, lm) + (1 - share) * kl(lq, lm)
    elif kind == "skew_forward_kl":
        value = kl(lp, mixed(share, lp, lq))
    elif kind == "skew_reverse_kl":
        value = kl(lq, mixed(share, lq, lp))
    elif kind == "forward_kl_top":
        value = kl(*coarse(lp, lq, int(share)))
    elif kind == "tvd":
        value = 0.5 * (lp.exp() - lq.exp()).abs().sum(-1)
    else:
        raise ValueError(f"unknown term {term!r}")
    return temperature**2 * value


def coarse(lp: Tensor, lq: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Both [N, top + 1]: the likeliest tokens of p, and the logarithm of the sum of all others."""
    likely, others = lp.detach().argsort(dim=-1, descending=True, stable=True).split([top, lp.shape[-1] - top], -1)
    p, q = (torch.cat([x.gather(-1, likely), x.gather(-1, others).logsumexp(-1, keepdim=True)], -1) for x in (lp, lq))
    return p, q


def mixed(share: float, first: Tensor, second: Tensor) -> Tensor:
    """log(share exp(first) + (1 - share) exp(second))."""
    return torch.logaddexp(first + math.log(share), second + math.log1p(-share))


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) over the last dimension."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def losses(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    objective: Objective,
    original_logits: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Both objectives, summed over the loss tokens of the batch and divided by their number.

    Logits [B, T, V], labels [B, T]. The student loss has no gradient for the teacher and the teacher loss none for
    the student. Without a teacher the teacher loss is 0 and the student may ask for ce only. The original teacher's
    logits are those that the anchor refers to.
    """
    scored = labels != IGNORE
    count = int(scored.sum())
    if count == 0:
        raise ValueError("the batch has no loss token: every label is -100")
    y, q = labels[scored], student_logits[scored]
    if teacher_logits is None:
        asked = [term for term, weight in objective.student.items() if weight and term != "ce"]
        if asked:
            raise ValueError(f"no teacher, but the student's objective has {', '.join(asked)}")
        return total(objective.student, q, y, q, q, objective.temperature) / count, q.new_zeros(())
    p = teacher_logits[scored]
    terms = {term: weight for term, weight in objective.teacher.items() if term != "anchor"}
    student_loss = total(objective.student, q, y, p.detach(), q, objective.temperature) / count
    teacher_loss = total(terms, p, y, p, q.detach(), objective.temperature) / count
    if objective.teacher.get("anchor"):
        assert original_logits is not None
        drift = divergence("forward_kl", p, original_logits[scored].detach(), 1.0)
        teacher_loss = teacher_loss + objective.teacher["anchor"] * drift.sum() / count
    return student_loss, teacher_loss


def total(terms: Mapping[str, float], own: Tensor, y: Tensor, p: Tensor, q: Tensor, temperature: float) -> Tensor:
    """The weighted terms, summed over tokens; `own` are the logits [N, V] that ce is taken of, at temperature 1."""
    loss = own.new_zeros(())
    for term, weight in terms.items():
        if weight == 0:
            continue
        if term == "ce":
            per_token = -own.log_softmax(-1).gather(-1, y[:, None]).squeeze(-1)
        else:
            per_token = divergence(term, p, q, temperature)
        loss = loss + weight * per_token.sum()
    return loss


# --- training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Group:
    """AdamW, clipping and schedule of one parameter group."""

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    """Only of parameters with two dimensions: norms and biases are not decayed."""
    clip: float = 1.0
    """Largest gradient norm; 0: not clipped."""
    schedule: str = "cosine"
    warmup_steps: int = 0
    min_lr_ratio: float = 0.1


def learning_rate(group: Group, step: int, steps: int) -> float:
    """The learning rate of `step` (from 0) in a run of `steps`."""
    if step < group.warmup_steps:
        return group.lr * (step + 1) / group.warmup_steps
    progress = (step - group.warmup_steps) / max(1, steps - group.warmup_steps)
    if group.schedule == "constant":
        return group.lr
    if group.schedule == "linear":
        left = 1 - progress
    elif group.schedule == "cosine":
        left = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        raise ValueError(f"unknown schedule {group.schedule!r}; known: cosine, linear, constant")
    return group.lr * (group.min_lr_ratio + (1 - group.min_lr_ratio) * left)


class Trained:
    """The trainable tensors of one group with their AdamW."""

    def __init__(self, weights: Weights, group: Group, dtype: torch.dtype | None) -> None:
        self.group = group
        self.weights = {name: w.detach().to(dtype=dtype, copy=True).requires_grad_() for name, w in weights.items()}
        decayed = [w for w in self.weights.values() if w.ndim == 2]
        plain = [w for w in self.weights.values() if w.ndim != 2]
        settings = [(decayed, group.weight_decay), (plain, 0.0)]
        self.optimizer = torch.optim.AdamW(
            [{"params": params, "weight_decay": decay} for params, decay in settings],
            lr=group.lr,
            betas=group.betas,
            eps=group.eps,
            foreach=False,
        )

    def step(self, step: int, steps: int) -> float:
        """Clip, update, forget the gradients; returns the gradient norm before clipping.

        A tensor that the loss does not reach counts as one with gradient zero.
        """
        for weight in self.weights.values():
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        grads = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        norm = math.sqrt(sum(float(grad.double().pow(2).sum()) for grad in grads))
        if self.group.clip > 0:
            for grad in grads:
                grad.mul_(min(1.0, self.group.clip / (norm + 1e-6)))
        for param_group in self.optimizer.param_groups:
            param_group["lr"] = learning_rate(self.group, step, steps)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def final(self) -> dict[str, Tensor]:
        """The weights as they are now, detached."""
        return {name: weight.detach() for name, weight in self.weights.items()}


@dataclass
class History:
    """What a run did: one number a step, and the final weights. Norms are taken before clipping."""

    student_loss: list[float] = field(default_factory=list)
    teacher_loss: list[float] = field(default_factory=list)
    student_grad_norm: list[float] = field(default_factory=list)
    online_grad_norm: list[float] = field(default_factory=list)
    student: dict[str, Tensor] = field(default_factory=dict)
    online: dict[str, Tensor] = field(default_factory=dict)


def train(
    teacher_weights: Weights | None,
    student_weights: Weights,
    online_weights: Weights | None,
    batches: Sequence[Batch],
    *,
    student_dims: Dims,
    teacher_dims: Dims | None = None,
    alpha: float = 16.0,
    objective: Objective | None = None,
    student_group: Group | None = None,
    online_group: Group | None = None,
    steps: int | None = None,
    dtype: torch.dtype | None = None,
) -> History:
    """One optimizer step a batch, each batch a whole global batch; the given weights are not changed.

    Without teacher weights: supervised training (the objective must not ask for a divergence). Without online modules:
    plain distillation from a frozen teacher. `steps` is the length of the schedule (default: the number of batches);
    `dtype` casts all weights first. A tied student's `lm_head.weight` is ignored, its embedding is the head.
    """
    objective = objective or Objective()
    steps = len(batches) if steps is None else steps
    if student_dims.tied_head:
        student_weights = {name: w for name, w in student_weights.items() if name != "lm_head.weight"}
    student = Trained(student_weights, student_group or Group(), dtype)
    group = online_group or Group(lr=1e-4, weight_decay=0.0)
    online = Trained(online_weights, group, dtype) if online_weights else None
    modules = online.weights if online else None
    frozen = {name: w.detach().to(dtype=dtype) for name, w in (teacher_weights or {}).items()}

    history = History()
    for step, (tokens, labels) in enumerate(batches):
        student_logits = decode(student.weights, student_dims, tokens)
        teacher_logits = original_logits = None
        if teacher_weights is not None:
            assert teacher_dims is not None, "teacher_weights need teacher_dims"
            teacher_logits = decode(frozen, teacher_dims, tokens, modules, alpha)
            original_logits = decode(frozen, teacher_dims, tokens)
        student_loss, teacher_loss = losses(student_logits, teacher_logits, labels, objective, original_logits)
        (student_loss + teacher_loss).backward()
        history.student_loss.append(student_loss.item())
        history.teacher_loss.append(teacher_loss.item())
        history.student_grad_norm.append(student.step(step, steps))
        history.online_grad_norm.append(online.step(step, steps) if online else 0.0)
    history.student = student.final()
    history.online = online.final() if online else {}
    return history
