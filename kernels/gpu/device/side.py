"""The gradient of one side's objective for a tile.

`gradient.py` has the formulas, written from the side of one model, "own", against the "other". The one-pass terms of a
side add up to very little; with x, y the probabilities, and every weight times the row's upstream gradient:

    x (plain + slope (log x - log y - KL)) - pull y      ce at tau = 1, forward_kl and reverse_kl
    + sharp x_1                                          ce at another temperature

A side is described by what it has, SIDE = (plain, slope, pull, sharp, mixed), known when the kernel is compiled, and by
its weights (plain, slope, pull, sharp, label, *mixed). An entry of mixed is (kind, share of own, index of the mixture,
rows of the term's two sums). What a side does not have is not computed.
"""

import triton
import triton.language as tl

from .logs import log_probability, natural, sign_of
from .tiles import LN2, LOG2E


@triton.jit
def _mixed_gradient(x, y, log_x, log_y, log_m, first, second, TERM: tl.constexpr):
    """A two-pass term's gradient with respect to own logits / tau, from bounded logarithms; see `gradient.py`."""
    SHARE: tl.constexpr = TERM[1]
    if TERM[0] == "tvd":
        return 0.5 * x * (sign_of(x - y) - second)
    if TERM[0] == "jsd":
        return SHARE * x * (natural(log_x - log_m) - first)
    if TERM[0] == "skew_forward_kl":
        ratio = log_x - log_m
        return x * (natural(ratio) - SHARE * tl.exp2(ratio) - first + (1.0 - (1.0 - SHARE) * second))
    return (1.0 - SHARE) * x * (second - tl.exp2(log_y - log_m))


@triton.jit
def row_factors(scalars, step, upstream, weights, KL_ROW: tl.constexpr, SIDE: tl.constexpr):
    """What a side's gradient needs to know of a row: (plain, slope, pull, sharp, label, mixed weights, mixed sums)."""
    plain, slope = upstream * weights[0], upstream * weights[1]
    if SIDE[1]:
        plain -= slope * tl.load(scalars + KL_ROW * step)
    mixed_weights = ()
    sums = ()
    for index in tl.static_range(len(SIDE[4])):
        mixed_weights += (upstream * weights[5 + index],)
        sums += (tl.load(scalars + SIDE[4][index][3] * step), tl.load(scalars + SIDE[4][index][4] * step))
    return plain, slope * LN2, upstream * weights[2], upstream * weights[3], upstream * weights[4], mixed_weights, sums


@triton.jit
def side_gradient(raw, x, y, log_x, log_y, mixtures, top, log_sum_1, factors, SIDE: tl.constexpr):
    """A side's gradient for a tile, the label left out; logarithms bounded."""
    plain, slope, pull, sharp, _, mixed_weights, sums = factors
    gradient = tl.zeros_like(raw)
    if SIDE[1]:
        gradient = x * (plain + slope * (log_x - log_y))
    elif SIDE[0]:
        gradient = x * plain
    if SIDE[2]:
        gradient -= pull * y
    if SIDE[3]:
        gradient += sharp * tl.exp2(log_probability(raw, top, log_sum_1, LOG2E))
    for index in tl.static_range(len(SIDE[4])):
        log_m = mixtures[SIDE[4][index][2]]
        part = _mixed_gradient(x, y, log_x, log_y, log_m, sums[2 * index], sums[2 * index + 1], SIDE[4][index])
        gradient += mixed_weights[index] * part
    return gradient
