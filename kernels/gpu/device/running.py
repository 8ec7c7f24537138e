"""Running sums of one row, kept by every thread for itself and joined at the row's end.

    c = (x - max) / tau      SUM = sum exp(c)      ENTROPY = sum exp(c) c      FORWARD = sum exp(c_t) (c_t - c_s)

A state is one model's (maximum, SUM, SUM at tau = 1, ENTROPY, group of the maximum), each [BLOCK / VECTOR]: one number
for each row of the tile, relative to that row's own maximum so far. Groups of VECTOR columns are counted from the first
tile on. When a maximum grows by h, sums shrink by exp(-h); those of a product with c are moved first, since
sum exp(c) (c - h) = sum exp(c) c - h sum exp(c). Sums with a c in them hold c times tau until the end.

GUARDED code takes 0 log 0 as 0 and a maximum of -inf as 0. That costs two selections a logit; see `forward`.
"""

import triton
import triton.language as tl

from .tiles import LOG2E


@triton.jit
def product(a, b, GUARDED: tl.constexpr):
    """a * b, where GUARDED 0 if a is."""
    if GUARDED:
        return tl.where(a == 0.0, 0.0, a * b)
    return a * b


@triton.jit
def _centre(x, top, GUARDED: tl.constexpr):
    if GUARDED:
        top = tl.where(top == -float("inf"), 0.0, top)
    return x - top


@triton.jit
def start_state(pointer, first, lead, num_columns, GUARDED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """An empty state for the blocks from first on; its maximum is their first logit: finite, unless -inf occurs."""
    GROUPS: tl.constexpr = BLOCK // VECTOR
    zero = tl.zeros([GROUPS], tl.float32)
    top = zero - float("inf")
    if not GUARDED:
        column = tl.minimum(tl.maximum(first * BLOCK - lead, 0), num_columns - 1)
        top = zero + tl.load(pointer + lead + column).to(tl.float32)
    return top, zero, zero, zero, tl.zeros([GROUPS], tl.int32) + first * GROUPS


@triton.jit
def _advance(
    state, x, group, scale, GUARDED: tl.constexpr, TEMPERED: tl.constexpr, ENTROPY: tl.constexpr, ARGMAX: tl.constexpr
):
    """Adds a tile. Also: its centred logits and their exponentials, the old SUM, and its shift and factor."""
    top, total, total_1, entropy, winner = state
    highest = tl.max(x, axis=1)
    if ARGMAX:
        winner = tl.where(highest > top, group, winner)
    new_top = tl.maximum(top, highest)
    shift = _centre(top, new_top, GUARDED)
    factor = tl.exp2(shift * scale)
    centred = _centre(x, new_top[:, None], GUARDED)
    weight = tl.exp2(centred * scale)
    new_total = total * factor + tl.sum(weight, axis=1)
    if TEMPERED:
        total_1 = total_1 * tl.exp2(shift * LOG2E) + tl.sum(tl.exp2(centred * LOG2E), axis=1)
    if ENTROPY:
        entropy = product(factor, entropy + product(total, shift, GUARDED), GUARDED)
        entropy += tl.sum(product(weight, centred, GUARDED), axis=1)
    return (new_top, new_total, total_1, entropy, winner), centred, weight, total, shift, factor


@triton.jit
def advance_pair(
    student, teacher, forward, reverse, s, t, group, scale, GUARDED: tl.constexpr,
    TEACHER: tl.constexpr, TEMPERED: tl.constexpr, ENTROPY: tl.constexpr, ARGMAX: tl.constexpr,
):  # fmt: skip
    """Adds a tile of each model to its state and to sum exp(c_t) d and sum exp(c_s) d, d = c_t - c_s."""
    student, cs, ws, zs, hs, fs = _advance(student, s, group, scale, GUARDED, TEMPERED, ENTROPY, ARGMAX)
    if TEACHER:
        teacher, ct, wt, zt, ht, ft = _advance(teacher, t, group, scale, GUARDED, TEMPERED, ENTROPY, ARGMAX)
        moved, apart = ht - hs, ct - cs
        forward = product(ft, forward + product(zt, moved, GUARDED), GUARDED)
        forward += tl.sum(product(wt, apart, GUARDED), axis=1)
        reverse = product(fs, reverse + product(zs, moved, GUARDED), GUARDED)
        reverse += tl.sum(product(ws, apart, GUARDED), axis=1)
    return student, teacher, forward, reverse


@triton.jit
def is_nan(sums, TEACHER: tl.constexpr):
    """Whether anything in (student, teacher, forward, reverse) is not a number."""
    student, teacher, forward, reverse = sums
    everything = student[0] + student[1] + student[2] + student[3]
    if TEACHER:
        everything += teacher[0] + teacher[1] + teacher[2] + teacher[3] + forward + reverse
    total = tl.sum(everything, axis=0)
    return total != total


@triton.jit
def join_threads(state, scale, TEMPERED: tl.constexpr, ENTROPY: tl.constexpr):
    """The first four of a state for the whole row; also each thread's shift to the joint maximum, and its factor."""
    top, total, total_1, entropy, _ = state
    highest = tl.max(top, axis=0)
    shift = _centre(top, highest, True)
    factor = tl.exp2(shift * scale)
    joint = tl.sum(total * factor, axis=0)
    joint_1 = joint
    if TEMPERED:
        joint_1 = tl.sum(total_1 * tl.exp2(shift * LOG2E), axis=0)
    if ENTROPY:
        entropy = product(factor, entropy + product(total, shift, True), True)
    return highest, joint, joint_1, tl.sum(entropy, axis=0), shift, factor
