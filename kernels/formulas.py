"""Sums over one block of columns, as plain tensor functions that the eager and the compiled backend share.

The formulas are in README.md; the gradients in `gradient`.

Legend: n tokens, v columns. ``x`` raw logits [n, v] in the computing dtype (fp32, fp64 for fp64 inputs); ``log_x`` log
probabilities [n, v]; scalars per token are [n, 1] where they meet columns and [n] elsewhere.

A logit may be -inf (a token that is ruled out): its probability is 0 and 0 log 0 = 0, also where both sides are -inf
and where a probability underflows. A divergence that is infinite (mass on a token that the other side rules out) has
the value inf and no defined gradient.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .spec import Mixture, Scalar
from .terms import TOP


def product(probability: Tensor, logarithm: Tensor) -> Tensor:
    """``probability * logarithm``, 0 where the probability is."""
    return torch.where(probability == 0, 0.0, probability * logarithm)


def log_ratio(log_x: Tensor, log_y: Tensor) -> Tensor:
    """``log_x - log_y`` with -inf - -inf = 0."""
    ratio = log_x - log_y
    return torch.where(ratio != ratio, 0.0, ratio)  # not isnan and its kin: Inductor makes those a loop over scalars


def side_statistics(x: Tensor, temperature: float) -> tuple[list[Tensor], Tensor, Tensor]:
    """One model's six rows of `spec.Stat` without LABEL and ARGMAX, its centred logits / tau and their exponentials."""
    top = x.amax(1)
    centred = x - torch.where(top == -math.inf, 0.0, top).unsqueeze(1)
    weight = centred.exp()
    total_1 = total = weight.sum(1)
    if temperature != 1.0:
        centred = centred / temperature
        weight = centred.exp()
        total = weight.sum(1)
    # The bound only replaces -inf: exp is 0 far above it, in fp64 too.
    entropy = (weight * centred.clamp_min(-1e4)).sum(1)
    unknown = torch.zeros_like(top)
    return [top, total, total_1, unknown, unknown, entropy], centred, weight


def block_statistics(student: Tensor, teacher: Tensor | None, temperature: float) -> list[Tensor]:
    """All rows of `spec.Stat` for one block of columns, each [n]; LABEL and ARGMAX are left at 0."""
    own, s, s_weight = side_statistics(student, temperature)
    if teacher is None:
        return own
    other, t, t_weight = side_statistics(teacher, temperature)
    ratio = t - s
    return [*own, *other, product(t_weight, ratio).sum(1), -product(s_weight, ratio).sum(1)]


def label_logit(x: Tensor, local_label: Tensor) -> Tensor:
    """The label's logit [n], 0 where the label [n] lies outside this shard's columns."""
    owned = (local_label >= 0) & (local_label < x.shape[1])
    picked = x.gather(1, local_label.clamp(0, x.shape[1] - 1).unsqueeze(1)).squeeze(1)
    return torch.where(owned, picked, 0.0)


def log_probabilities(x: Tensor, scalars: Tensor, first: Scalar, temperature: float) -> Tensor:
    """log softmax(x / tau) [n, v] from the saved scalars [K, n]; first is the side's MAX row.

    Centred before it is normalised: at logits of 1e4 one stored lse would lose three digits.
    """
    centred = x - scalars[first].unsqueeze(1)
    if temperature != 1.0:
        centred = centred / temperature
    return centred - scalars[first + 1].unsqueeze(1)


def log_mixture(log_a: Tensor, log_b: Tensor, share_of_a: float) -> Tensor:
    """log(share_of_a * a + (1 - share_of_a) * b), never through the probabilities, which underflow."""
    return torch.logaddexp(log_a + math.log(share_of_a), log_b + math.log1p(-share_of_a))


def mixture_sums(log_p: Tensor, log_q: Tensor, mixture: Mixture, inside: Tensor | None = None) -> list[Tensor]:
    """The three sums over columns, each [n], that a two-pass term needs for its value and both gradients.

    jsd         sum p log(p/m),   sum q log(q/m),    0
    skew        sum p log(p/m),   sum p q / m,       0        (reverse: p and q exchanged)
    tvd         sum abs(p - q),   sum p sign(p - q), sum q sign(q - p)
    top         sum_S p log(p/q), log of the sum of p outside S, the same of q; inside [n, v] says what is in S (`top`)
    """
    if mixture.kind == TOP:
        assert inside is not None
        kept = torch.where(inside, product(log_p.exp(), log_ratio(log_p, log_q)), 0.0).sum(1)
        return [kept, *(torch.where(inside, -math.inf, log_x).logsumexp(1) for log_x in (log_p, log_q))]
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


def block_mixtures(
    student: Tensor,
    teacher: Tensor,
    scalars: Tensor,
    mixtures: tuple[Mixture, ...],
    temperature: float,
    tops: Mapping[int, Tensor],
) -> list[Tensor]:
    """`mixture_sums` of every mixture for one block of columns, each [n], from raw logits and scalars [K, n].

    tops  of each k the columns that are among the teacher's k likeliest tokens, [n, v] bool
    """
    log_q = log_probabilities(student, scalars, Scalar.STUDENT_MAX, temperature)
    log_p = log_probabilities(teacher, scalars, Scalar.TEACHER_MAX, temperature)
    sums = (mixture_sums(log_p, log_q, mixture, tops.get(int(mixture.parameter))) for mixture in mixtures)
    return [row for rows in sums for row in rows]
