"""Probabilities and mixtures of a tile, in logarithms to base 2: exp2 is what the hardware has.

Logarithms are bounded at FLOOR, so that a token that is ruled out, on one side or both, meets finite numbers only:
its probability is 0 and 0 times a finite number is 0. A NaN survives in the probability.
"""

import triton
import triton.language as tl

from .tiles import LN2, LOG2E

FLOOR = tl.constexpr(-1e30)


@triton.jit
def row_scalars(scalars, step, FIRST: tl.constexpr):
    """One model's MAX, and log2 of its SUM and SUM_1; FIRST is the row of its MAX among `spec.Scalar`."""
    top = tl.load(scalars + FIRST * step)
    return top, tl.load(scalars + (FIRST + 1) * step) * LOG2E, tl.load(scalars + (FIRST + 2) * step) * LOG2E


@triton.jit
def log_probability(x, top, log_sum, scale):
    """log2 softmax(x / tau), scale = log2(e) / tau; centred first, or logits of 1e4 would lose three digits."""
    return (x - top) * scale - log_sum


@triton.jit
def bounded(log_x):
    """Never below FLOOR."""
    return tl.maximum(log_x, FLOOR)


@triton.jit
def log2_1p(u):
    """log2(1 + u) for u in [0, 1], within 1.5e-7: u times the minimax polynomial of degree 8 of log2(1 + u) / u.

    Less than half the instructions of a logarithm that must first find an exponent.
    """
    value = 0.00776755902916193 * u - 0.043440937995910645
    value = value * u + 0.1142769381403923
    value = value * u - 0.19832183420658112
    value = value * u + 0.2762056291103363
    value = value * u - 0.3585522174835205
    value = value * u + 0.4807109534740448
    value = value * u - 0.721341073513031
    return u * (value * u + 1.4426950216293335)


@triton.jit
def log_mixture(log_p, log_q, MIXTURE: tl.constexpr):
    """log2 m from bounded logarithms; MIXTURE = (kind, log2 of the share of p, log2 of the share of q)."""
    from_p, from_q = log_p + MIXTURE[1], log_q + MIXTURE[2]
    return tl.maximum(from_p, from_q) + log2_1p(tl.exp2(-tl.abs(from_p - from_q)))


@triton.jit
def sign_of(x):
    """-1, 0 or 1."""
    return tl.where(x > 0.0, 1.0, tl.where(x < 0.0, -1.0, 0.0))


@triton.jit
def natural(log_x):
    """From base 2 to base e."""
    return log_x * LN2
