"""Second pass, for jsd, skew and tvd: the three sums of `formulas.mixture_sums` for each mixture, row by row."""

import triton
import triton.language as tl

from .logs import bounded, log_mixture, log_probability, natural, row_scalars, sign_of
from .tiles import IGNORED, LOG2E, UNSPECIALIZED, load_tile, part_blocks, row_base, row_lead, step_positions, step_width


@triton.jit
def _advance(sums, log_p, log_q, MIXTURE: tl.constexpr):
    """Adds a tile to a mixture's three sums."""
    first, second, third = sums
    p, q = tl.exp2(log_p), tl.exp2(log_q)
    if MIXTURE[0] == "tvd":
        sign = sign_of(p - q)
        first += tl.sum(tl.abs(p - q), axis=1)
        second += tl.sum(p * sign, axis=1)
        third -= tl.sum(q * sign, axis=1)
    else:
        log_p, log_q = bounded(log_p), bounded(log_q)
        log_m = log_mixture(log_p, log_q, MIXTURE)
        if MIXTURE[0] == "jsd":
            first += tl.sum(p * (log_p - log_m), axis=1)
            second += tl.sum(q * (log_q - log_m), axis=1)
        elif MIXTURE[0] == "skew_forward_kl":
            first += tl.sum(p * (log_p - log_m), axis=1)
            second += tl.sum(q * tl.exp2(log_p - log_m), axis=1)
        else:
            first += tl.sum(q * (log_q - log_m), axis=1)
            second += tl.sum(p * tl.exp2(log_q - log_m), axis=1)
    return first, second, third


@triton.jit
def _total(sums, MIXTURE: tl.constexpr):
    """A mixture's three sums over the row; those with a logarithm were in base 2."""
    first, second = tl.sum(sums[0], axis=0), tl.sum(sums[1], axis=0)
    if MIXTURE[0] == "jsd":
        second = natural(second)
    if MIXTURE[0] != "tvd":
        first = natural(first)
    return first, second, tl.sum(sums[2], axis=0)


@triton.jit
def _add_blocks(
    sums, s_row, t_row, start, stop, lead, num_columns, s_top, s_log, t_top, t_log, scale,
    MASKED: tl.constexpr, MIXTURES: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Adds blocks start to stop to the sums, three [BLOCK / VECTOR] for each mixture."""
    WIDTH: tl.constexpr = step_width(MASKED, VECTOR)
    STEPS: tl.constexpr = VECTOR // WIDTH
    for step in range(start * STEPS, stop * STEPS):
        position = step_positions(step, BLOCK, VECTOR, WIDTH)
        log_q = log_probability(load_tile(s_row, position, lead, num_columns, MASKED), s_top, s_log, scale)
        log_p = log_probability(load_tile(t_row, position, lead, num_columns, MASKED), t_top, t_log, scale)
        added = ()
        for index in tl.static_range(len(MIXTURES)):
            added += (_advance(sums[index], log_p, log_q, MIXTURES[index]),)
        sums = added
    return sums


@triton.jit(do_not_specialize=UNSPECIALIZED)
def mixtures_kernel(
    student,  # [n, V_local], read only, from the 16-byte boundary below its first element
    teacher,  # likewise
    labels,  # [n] int64, read only
    scalars,  # [K, n] fp32 with rows scalars_stride apart, read only
    out,  # [parts, 3 * mixtures, n] fp32, written where a row has a label
    num_tokens, num_columns, blocks_per_part, temperature, scalars_stride,
    student_stride, student_offset, teacher_stride, teacher_offset,
    TEACHER_ALIGNED: tl.constexpr, TEACHER_ROW: tl.constexpr,
    MIXTURES: tl.constexpr,  # each (kind, log2 of the share of p, log2 of the share of q)
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Program (row, part). TEACHER_ALIGNED as in `forward.statistics_kernel`."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if tl.load(labels + row) == IGNORED:
        return
    scale = LOG2E / temperature
    lead = row_lead(row, student_stride, student_offset, VECTOR)
    s_row = student + row_base(row, student_stride, student_offset, lead, True, VECTOR)
    t_row = teacher + row_base(row, teacher_stride, teacher_offset, lead, TEACHER_ALIGNED, VECTOR)
    s_top, s_log, _ = row_scalars(scalars + row, scalars_stride, 0)
    t_top, t_log, _ = row_scalars(scalars + row, scalars_stride, TEACHER_ROW)
    first, last, first_whole, last_whole = part_blocks(part, blocks_per_part, lead, num_columns, BLOCK)
    zero = tl.zeros([BLOCK // VECTOR], tl.float32)
    sums = ()
    for _ in tl.static_range(len(MIXTURES)):
        sums += ((zero, zero, zero),)
    sums = _add_blocks(
        sums, s_row, t_row, first, tl.minimum(first_whole, last), lead, num_columns,
        s_top, s_log, t_top, t_log, scale, True, MIXTURES, BLOCK, VECTOR,
    )  # fmt: skip
    sums = _add_blocks(
        sums, s_row, t_row, first_whole, last_whole, lead, num_columns,
        s_top, s_log, t_top, t_log, scale, False, MIXTURES, BLOCK, VECTOR,
    )  # fmt: skip
    sums = _add_blocks(
        sums, s_row, t_row, tl.maximum(first_whole, last_whole), last, lead, num_columns,
        s_top, s_log, t_top, t_log, scale, True, MIXTURES, BLOCK, VECTOR,
    )  # fmt: skip
    step = num_tokens.to(tl.int64)
    out += part * 3 * len(MIXTURES) * step + row
    for index in tl.static_range(len(MIXTURES)):
        first, second, third = _total(sums[index], MIXTURES[index])
        tl.store(out + 3 * index * step, first)
        tl.store(out + (3 * index + 1) * step, second)
        tl.store(out + (3 * index + 2) * step, third)
