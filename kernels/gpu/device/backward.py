"""Backward: both models' gradients with respect to their raw logits, in one walk over the columns.

The label's one-hot vector is subtracted in the block that holds it, which is treated as an edge.
"""

import triton
import triton.language as tl

from .logs import bounded, log_mixture, log_probability, row_scalars
from .side import row_factors, side_gradient
from .tiles import (
    IGNORED,
    LOG2E,
    UNSPECIALIZED,
    load_tile,
    part_blocks,
    row_base,
    row_lead,
    step_positions,
    step_width,
    store_tile,
)


@triton.jit
def _write_step(
    step, rows, lead, num_columns, label, scale, scalars, factors,
    MASKED: tl.constexpr, TEACHER: tl.constexpr, STUDENT_SIDE: tl.constexpr, TEACHER_SIDE: tl.constexpr,
    MIXTURES: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Both gradients of a step; both models are read before either is written, since an out may be the logits."""
    position = step_positions(step, BLOCK, VECTOR, step_width(MASKED, VECTOR))
    s_row, t_row, s_out, t_out = rows
    s_top, s_log, s_log_1 = scalars[0]
    t_top, t_log, t_log_1 = scalars[1]
    s = load_tile(s_row, position, lead, num_columns, MASKED)
    t = s
    log_q = log_probability(s, s_top, s_log, scale)
    q = tl.exp2(log_q)
    log_q = bounded(log_q)
    p, log_p = q, log_q
    if TEACHER:
        t = load_tile(t_row, position, lead, num_columns, MASKED)
        log_p = log_probability(t, t_top, t_log, scale)
        p = tl.exp2(log_p)
        log_p = bounded(log_p)
    mixtures = ()
    for index in tl.static_range(len(MIXTURES)):
        mixtures += (log_mixture(log_p, log_q, MIXTURES[index]),)
    if STUDENT_SIDE is not None:
        s_gradient = side_gradient(s, q, p, log_q, log_p, mixtures, s_top, s_log_1, factors[0], STUDENT_SIDE)
        if MASKED:
            s_gradient -= tl.where(position - lead == label, factors[0][4], 0.0)
    if TEACHER_SIDE is not None:
        t_gradient = side_gradient(t, p, q, log_p, log_q, mixtures, t_top, t_log_1, factors[1], TEACHER_SIDE)
        if MASKED:
            t_gradient -= tl.where(position - lead == label, factors[1][4], 0.0)
    if STUDENT_SIDE is not None:
        store_tile(s_out, position, lead, num_columns, s_gradient, MASKED)
    if TEACHER_SIDE is not None:
        store_tile(t_out, position, lead, num_columns, t_gradient, MASKED)


@triton.jit
def _clear(out, start, stop, lead, num_columns, MASKED: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Zeros in blocks start to stop."""
    WIDTH: tl.constexpr = step_width(MASKED, VECTOR)
    STEPS: tl.constexpr = VECTOR // WIDTH
    zero = tl.zeros([BLOCK // VECTOR, WIDTH], tl.float32)
    for step in range(start * STEPS, stop * STEPS):
        store_tile(out, step_positions(step, BLOCK, VECTOR, WIDTH), lead, num_columns, zero, MASKED)


@triton.jit
def _clear_part(out, blocks, lead, num_columns, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Zeros in a part of a row; blocks as `part_blocks` returns them."""
    first, last, first_whole, last_whole = blocks
    _clear(out, first, tl.minimum(first_whole, last), lead, num_columns, True, BLOCK, VECTOR)
    _clear(out, first_whole, last_whole, lead, num_columns, False, BLOCK, VECTOR)
    _clear(out, tl.maximum(first_whole, last_whole), last, lead, num_columns, True, BLOCK, VECTOR)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gradients_kernel(
    student,  # [n, V_local], read only, from the 16-byte boundary below its first element
    teacher,  # likewise, None without TEACHER
    labels,  # [n] int64, read only
    scalars,  # [K, n] fp32 with rows scalars_stride apart, read only
    student_upstream, teacher_upstream,  # [n] fp32, read only, None without the side
    student_out, teacher_out,  # [n, V_local], written, may be the logits themselves, None without the side
    num_columns, first_id, blocks_per_part, temperature, scalars_stride, student_weights, teacher_weights,
    student_stride, student_offset, teacher_stride, teacher_offset,
    student_out_stride, student_out_offset, teacher_out_stride, teacher_out_offset,
    TEACHER: tl.constexpr, TEACHER_ALIGNED: tl.constexpr,
    STUDENT_OUT_ALIGNED: tl.constexpr, TEACHER_OUT_ALIGNED: tl.constexpr,
    STUDENT_SIDE: tl.constexpr, TEACHER_SIDE: tl.constexpr, MIXTURES: tl.constexpr,
    TEACHER_ROW: tl.constexpr, FORWARD_ROW: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Program (row, part). ALIGNED: that tensor's rows begin as far from a 16-byte boundary as the student's."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    label = tl.load(labels + row)
    lead = row_lead(row, student_stride, student_offset, VECTOR)
    blocks = part_blocks(part, blocks_per_part, lead, num_columns, BLOCK)
    s_row = student + row_base(row, student_stride, student_offset, lead, True, VECTOR)
    t_row, s_out, t_out = s_row, s_row, s_row
    s_scalars = row_scalars(scalars + row, scalars_stride, 0)
    t_scalars, s_factors, t_factors = s_scalars, (), ()
    if TEACHER:
        t_row = teacher + row_base(row, teacher_stride, teacher_offset, lead, TEACHER_ALIGNED, VECTOR)
        t_scalars = row_scalars(scalars + row, scalars_stride, TEACHER_ROW)
    if STUDENT_SIDE is not None:
        base = row_base(row, student_out_stride, student_out_offset, lead, STUDENT_OUT_ALIGNED, VECTOR)
        s_out = student_out + base
        upstream = tl.load(student_upstream + row)
        s_factors = row_factors(scalars + row, scalars_stride, upstream, student_weights, FORWARD_ROW + 1, STUDENT_SIDE)
    if TEACHER_SIDE is not None:
        base = row_base(row, teacher_out_stride, teacher_out_offset, lead, TEACHER_OUT_ALIGNED, VECTOR)
        t_out = teacher_out + base
        upstream = tl.load(teacher_upstream + row)
        t_factors = row_factors(scalars + row, scalars_stride, upstream, teacher_weights, FORWARD_ROW, TEACHER_SIDE)
    if label == IGNORED:
        if STUDENT_SIDE is not None:
            _clear_part(s_out, blocks, lead, num_columns, BLOCK, VECTOR)
        if TEACHER_SIDE is not None:
            _clear_part(t_out, blocks, lead, num_columns, BLOCK, VECTOR)
        return
    rows, saved, factors = (s_row, t_row, s_out, t_out), (s_scalars, t_scalars), (s_factors, t_factors)
    scale = LOG2E / temperature
    first, last, first_whole, last_whole = blocks
    local = label - first_id
    owned = (local >= 0) & (local < num_columns)
    local = tl.where(owned, local, -1 - lead).to(tl.int32)
    label_block = (local + lead) // BLOCK
    inside = owned & (label_block >= first_whole) & (label_block < last_whole)
    # Whole blocks but the label's, then the edges: the row's head, its tail, the label's block.
    for index in range(first_whole, last_whole - inside.to(tl.int32)):
        block = index + (inside & (index >= label_block)).to(tl.int32)
        _write_step(
            block, rows, lead, num_columns, local, scale, saved, factors, False,
            TEACHER, STUDENT_SIDE, TEACHER_SIDE, MIXTURES, BLOCK, VECTOR,
        )  # fmt: skip
    STEPS: tl.constexpr = VECTOR // step_width(True, VECTOR)
    head = tl.where(first < first_whole, first, last)
    tail = tl.maximum(first_whole, last_whole)
    for step in range(0, 3 * STEPS):
        edge = step // STEPS
        block = tl.where(edge == 0, head, tl.where(edge == 1, tail, tl.where(inside, label_block, last)))
        if block < last:
            _write_step(
                block * STEPS + step % STEPS, rows, lead, num_columns, local, scale, saved, factors, True,
                TEACHER, STUDENT_SIDE, TEACHER_SIDE, MIXTURES, BLOCK, VECTOR,
            )  # fmt: skip
