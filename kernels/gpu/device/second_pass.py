"""Second pass, for jsd, skew and tvd: the three sums of `formulas.mixture_sums` for each mixture, row by row."""

import triton
import triton.language as tl

from .logs import bounded, log_mixture, log_probability, natural, row_scalars, sign_of
from .tiles import IGNORED, LOG2E, UNSPECIALIZED, load_tile, part_blocks, row_base, row_lead, step_positions, step_width


@triton.jit
def _mixture_sums(log_p, log_q, MIXTURE: tl.constexpr):
    """Summed over axis 1 of a tile."""
    p, q = tl.exp2(log_p), tl.exp2(log_q)
    third = tl.zeros_like(p)
    if MIXTURE[0] == "tvd":
        sign = sign_of(p - q)
        first, second, third = tl.abs(p - q), p * sign, -q * sign
    else:
        log_p, log_q = bounded(log_p), bounded(log_q)
        log_m = log_mixture(log_p, log_q, MIXTURE)
        if MIXTURE[0] == "jsd":
            first, second = p * natural(log_p - log_m), q * natural(log_q - log_m)
        elif MIXTURE[0] == "skew_forward_kl":
            first, second = p * natural(log_p - log_m), q * tl.exp2(log_p - log_m)
        else:
            first, second = q * natural(log_q - log_m), p * tl.exp2(log_q - log_m)
    return tl.sum(first, axis=1), tl.sum(second, axis=1), tl.sum(third, axis=1)


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
            first, second, third = _mixture_sums(log_p, log_q, MIXTURES[index])
            added += (sums[3 * index] + first, sums[3 * index + 1] + second, sums[3 * index + 2] + third)
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
    sums = ()
    for _ in tl.static_range(3 * len(MIXTURES)):
        sums += (tl.zeros([BLOCK // VECTOR], tl.float32),)
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
    for index in tl.static_range(3 * len(MIXTURES)):
        tl.store(out + index * step, tl.sum(sums[index], axis=0))
