"""The maths of one block of columns, as plain tensor functions that the eager and the compiled backend share.

Legend: n tokens, v columns. ``x`` raw logits [n, v] in the computing dtype (fp32, fp64 for fp64 inputs); ``log_x`` log
probabilities [n, v]; scalars per token are [n, 1] where they meet columns and [n] elsewhere.

Everything is written from the side of one model, "own", against the "other": the gradient of a divergence with respect
to the student's logits is the gradient of the mirrored divergence with respect to the teacher's (`mirrored`), so each
formula stands here once. README.md lists them.

A logit may be -inf (a token that is ruled out): its probability is 0 and 0 log 0 = 0, also where both sides are -inf
and where a probability underflows. A divergence that is infinite (mass on a token that the other side rules out) has
the value inf and no defined gradient.
"""

import math

import torch
from torch import Tensor

from .spec import Mixture
from .terms import Term


def product(probability: Tensor, logarithm: Tensor) -> Tensor:
    """``probability * logarithm`` with 0 * inf = 0."""
    return torch.nan_to_num(probability * logarithm, nan=0.0, posinf=math.inf, neginf=-math.inf)


def log_ratio(log_x: Tensor, log_y: Tensor) -> Tensor:
    """``log_x - log_y`` with -inf - -inf = 0."""
    return torch.nan_to_num(log_x - log_y, nan=0.0, posinf=math.inf, neginf=-math.inf)


def centre(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row maxima [n], their columns [n], and the logits minus their row maximum (0 where the whole row is -inf)."""
    top, column = x.max(dim=1)
    base = torch.where(top == -math.inf, 0.0, top)
    return top, column, x - base.unsqueeze(1)


def side_statistics(x: Tensor, local_label: Tensor, temperature: float) -> tuple[list[Tensor], Tensor, Tensor]:
    """One model's six rows of `spec.Stat` (argmax counted from this block), its centred logits / tau and their exp.

    local_label  [n] int64, column of the label; anything outside [0, v) belongs to another shard
    """
    top, column, centred = centre(x)
    weight = centred.exp()
    total_1 = total = weight.sum(1)
    if temperature != 1.0:
        centred = centred / temperature
        weight = centred.exp()
        total = weight.sum(1)
    entropy = product(weight, centred).sum(1)
    owned = (local_label >= 0) & (local_label < x.shape[1])
    picked = x.gather(1, local_label.clamp(0, x.shape[1] - 1).unsqueeze(1)).squeeze(1)
    label = torch.where(owned, picked, 0.0)
    return [top, total, total_1, label, column.to(x.dtype), entropy], centred, weight


def block_statistics(student: Tensor, teacher: Tensor | None, local_label: Tensor, temperature: float) -> list[Tensor]:
    """All rows of `spec.Stat` for one block of columns, each [n]; argmax rows count from the block's first column."""
    own, s, s_weight = side_statistics(student, local_label, temperature)
    if teacher is None:
        return own
    other, t, t_weight = side_statistics(teacher, local_label, temperature)
    ratio = log_ratio(t, s)
    return [*own, *other, product(t_weight, ratio).sum(1), -product(s_weight, ratio).sum(1)]


def log_mixture(log_a: Tensor, log_b: Tensor, share_of_a: float) -> Tensor:
    """log(share_of_a * a + (1 - share_of_a) * b), never through the probabilities, which underflow."""
    return torch.logaddexp(log_a + math.log(share_of_a), log_b + math.log1p(-share_of_a))


def mixture_sums(log_p: Tensor, log_q: Tensor, mixture: Mixture) -> list[Tensor]:
    """The three sums over columns, each [n], that a two-pass term needs for its value and both gradients.

    jsd         sum p log(p/m),   sum q log(q/m),    0
    skew        sum p log(p/m),   sum p q / m,       0        (reverse: p and q exchanged)
    tvd         sum abs(p - q),   sum p sign(p - q), sum q sign(q - p)
    """
    if mixture.kind == "tvd":
        p, q = log_p.exp(), log_q.exp()
        sign = (p - q).sign()
        return [(p - q).abs().sum(1), (p * sign).sum(1), -(q * sign).sum(1)]
    if mixture.kind == "jsd":
        log_m = log_mixture(log_p, log_q, mixture.parameter)
        first, second = (product(log_x.exp(), log_ratio(log_x, log_m)).sum(1) for log_x in (log_p, log_q))
        return [first, second, torch.zeros_like(first)]
    if mixture.kind == "skew_reverse_kl":
        log_p, log_q = log_q, log_p
    p, log_p_m = log_p.exp(), log_ratio(log_p, log_mixture(log_p, log_q, mixture.parameter))
    total = product(p, log_p_m).sum(1)
    overlap = (log_q.exp() * log_p_m.exp()).sum(1)
    return [total, overlap, torch.zeros_like(total)]


def mirrored(kind: str) -> str:
    """The term's kind with the roles of the two models exchanged."""
    exchange = {"forward_kl": "reverse_kl", "skew_forward_kl": "skew_reverse_kl"}
    exchange |= {value: key for key, value in exchange.items()}
    return exchange.get(kind, kind)


def divergence_gradient(
    kind: str, parameter: float, log_x: Tensor, log_y: Tensor, value: Tensor, sums: list[Tensor]
) -> Tensor:
    """Gradient [n, v] of one divergence with respect to own logits / tau, own = x, other = y.

    kind, parameter  as seen from own: "forward_kl" is KL(x || y), jsd's parameter is the weight of own
    value            [n, 1], KL of the kind; not read by two-pass kinds
    sums             `mixture_sums`, each [n, 1], own first; empty for one-pass kinds
    """
    x = log_x.exp()
    if kind == "forward_kl":
        return product(x, log_ratio(log_x, log_y)) - x * value
    if kind == "reverse_kl":
        return x - log_y.exp()
    if kind == "tvd":
        return 0.5 * x * ((x - log_y.exp()).sign() - sums[1])
    if kind == "jsd":
        log_m = log_mixture(log_x, log_y, parameter)
        return parameter * (product(x, log_ratio(log_x, log_m)) - x * sums[0])
    total, overlap = sums[0], sums[1]
    if kind == "skew_forward_kl":
        ratio = log_ratio(log_x, log_mixture(log_x, log_y, parameter))
        return product(x, ratio) - x * (parameter * ratio.exp() + total - (1 - (1 - parameter) * overlap))
    ratio = log_ratio(log_y, log_mixture(log_y, log_x, parameter))
    return (1 - parameter) * x * (overlap - ratio.exp())


def own_view(term: Term, side: str) -> tuple[str, float]:
    """Kind and parameter of a term as `divergence_gradient` wants them: p is own for the teacher, q for the student."""
    if side == "teacher":
        return term.kind, term.parameter
    return mirrored(term.kind), 1 - term.parameter if term.kind == "jsd" else term.parameter
