"""First pass: the statistics of `spec.Stat` for each row of both shards, in one walk over its columns.

A row's edges, where masks stand in for missing columns by -inf, are few and take guarded code. In the loop between them
a logit of -inf is let through; the sums then hold a NaN, and a row that ends with one is walked once more with guarded
code alone. Rows without -inf pay nothing for those with.
"""

import triton
import triton.language as tl

from .running import advance_pair, is_nan, join_threads, product, start_state
from .tiles import (
    IGNORED,
    LOG2E,
    NOWHERE,
    UNSPECIALIZED,
    load_tile,
    part_blocks,
    row_base,
    row_lead,
    step_positions,
    step_width,
)


@triton.jit
def _add_blocks(
    sums, s_row, t_row, start, stop, lead, num_columns, scale, GUARDED: tl.constexpr,
    TEACHER: tl.constexpr, TEMPERED: tl.constexpr, ENTROPY: tl.constexpr, ARGMAX: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Adds blocks start to stop; they lie wholly inside the row unless GUARDED."""
    GROUPS: tl.constexpr = BLOCK // VECTOR
    WIDTH: tl.constexpr = step_width(GUARDED, VECTOR)
    STEPS: tl.constexpr = VECTOR // WIDTH
    groups = tl.arange(0, GROUPS)
    student, teacher, forward, reverse = sums
    for step in range(start * STEPS, stop * STEPS):
        position = step_positions(step, BLOCK, VECTOR, WIDTH)
        s = load_tile(s_row, position, lead, num_columns, GUARDED)
        t = s
        if TEACHER:
            t = load_tile(t_row, position, lead, num_columns, GUARDED)
        student, teacher, forward, reverse = advance_pair(
            student, teacher, forward, reverse, s, t, (step // STEPS) * GROUPS + groups, scale,
            GUARDED, TEACHER, TEMPERED, ENTROPY, ARGMAX,
        )  # fmt: skip
    return student, teacher, forward, reverse


@triton.jit
def _walk(
    s_row, t_row, part, blocks_per_part, lead, num_columns, scale, GUARDED: tl.constexpr,
    TEACHER: tl.constexpr, TEMPERED: tl.constexpr, ENTROPY: tl.constexpr, ARGMAX: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """The sums of a part of a row; GUARDED treats every block as an edge."""
    first, last, first_whole, last_whole = part_blocks(part, blocks_per_part, lead, num_columns, BLOCK)
    student = start_state(s_row, first, lead, num_columns, GUARDED, BLOCK, VECTOR)
    teacher = student
    if TEACHER:
        teacher = start_state(t_row, first, lead, num_columns, GUARDED, BLOCK, VECTOR)
    zero = tl.zeros([BLOCK // VECTOR], tl.float32)
    sums = (student, teacher, zero, zero)
    if not GUARDED:
        sums = _add_blocks(
            sums, s_row, t_row, first, tl.minimum(first_whole, last), lead, num_columns, scale, True,
            TEACHER, TEMPERED, ENTROPY, ARGMAX, BLOCK, VECTOR,
        )  # fmt: skip
        sums = _add_blocks(
            sums, s_row, t_row, first_whole, last_whole, lead, num_columns, scale, False,
            TEACHER, TEMPERED, ENTROPY, ARGMAX, BLOCK, VECTOR,
        )  # fmt: skip
        first = tl.maximum(first_whole, last_whole)
    return _add_blocks(
        sums, s_row, t_row, first, last, lead, num_columns, scale, True,
        TEACHER, TEMPERED, ENTROPY, ARGMAX, BLOCK, VECTOR,
    )  # fmt: skip


@triton.jit
def _largest_column(row, state, highest, lead, num_columns, VECTOR: tl.constexpr):
    """The first column that holds the maximum: of the lowest of the groups that have seen it, read once more."""
    group = tl.min(tl.where(state[0] == highest, state[4], NOWHERE), axis=0)
    position = tl.where(group == NOWHERE, 0, group) * VECTOR + tl.arange(0, VECTOR)
    x = load_tile(row, position, lead, num_columns, True)
    column = position - lead
    candidate = (x == highest) & (column >= 0) & (column < num_columns)
    return tl.min(tl.where(candidate, column, NOWHERE), axis=0)


@triton.jit
def _write_side(
    out, step, row, state, joined, label, part, lead, num_columns, first_id, temperature,
    ENTROPY: tl.constexpr, ARGMAX: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """One model's six rows of `spec.Stat`; the label's logit is told by the first part alone."""
    tl.store(out, joined[0])
    tl.store(out + step, joined[1])
    tl.store(out + 2 * step, joined[2])
    owned = (label >= 0) & (label < num_columns) & (part == 0)
    tl.store(out + 3 * step, tl.load(row + lead + label, mask=owned, other=0.0).to(tl.float32))
    if ARGMAX:
        column = _largest_column(row, state, joined[0], lead, num_columns, VECTOR)
        tl.store(out + 4 * step, (column + first_id).to(tl.float32))
    if ENTROPY:
        tl.store(out + 5 * step, joined[3] / temperature)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def statistics_kernel(
    student,  # [n, V_local], read only, from the 16-byte boundary below its first element
    teacher,  # likewise, None without TEACHER
    labels,  # [n] int64, read only
    out,  # [parts, K, n] fp32, written where a row has a label; rows that are off keep what they hold
    num_tokens, num_columns, first_id, blocks_per_part, temperature,
    student_stride, student_offset, teacher_stride, teacher_offset,
    TEACHER: tl.constexpr, TEACHER_ALIGNED: tl.constexpr,
    TEMPERED: tl.constexpr, ENTROPY: tl.constexpr, ARGMAX: tl.constexpr,
    NUM_STATS: tl.constexpr, TEACHER_ROW: tl.constexpr, FORWARD_ROW: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Program (row, part). TEACHER_ALIGNED: the teacher's rows begin as far from a boundary as the student's."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    label = tl.load(labels + row)
    if label == IGNORED:
        return
    scale = LOG2E / temperature
    lead = row_lead(row, student_stride, student_offset, VECTOR)
    s_row = student + row_base(row, student_stride, student_offset, lead, True, VECTOR)
    t_row = s_row
    if TEACHER:
        t_row = teacher + row_base(row, teacher_stride, teacher_offset, lead, TEACHER_ALIGNED, VECTOR)
    sums = _walk(
        s_row, t_row, part, blocks_per_part, lead, num_columns, scale,
        False, TEACHER, TEMPERED, ENTROPY, ARGMAX, BLOCK, VECTOR,
    )  # fmt: skip
    if is_nan(sums, TEACHER):
        sums = _walk(
            s_row, t_row, part, blocks_per_part, lead, num_columns, scale,
            True, TEACHER, TEMPERED, ENTROPY, ARGMAX, BLOCK, VECTOR,
        )  # fmt: skip
    own, other, forward, reverse = sums
    step = num_tokens.to(tl.int64)
    out += part * NUM_STATS * step + row
    local = label - first_id
    joined = join_threads(own, scale, TEMPERED, ENTROPY)
    _write_side(
        out, step, s_row, own, joined, local, part, lead, num_columns, first_id, temperature, ENTROPY, ARGMAX, VECTOR
    )
    if TEACHER:
        theirs = join_threads(other, scale, TEMPERED, ENTROPY)
        _write_side(
            out + TEACHER_ROW * step, step, t_row, other, theirs, local, part, lead, num_columns, first_id,
            temperature, ENTROPY, ARGMAX, VECTOR,
        )  # fmt: skip
        moved = theirs[4] - joined[4]
        forward = product(theirs[5], forward + product(other[1], moved, True), True)
        reverse = product(joined[5], reverse + product(own[1], moved, True), True)
        tl.store(out + FORWARD_ROW * step, tl.sum(forward, axis=0) / temperature)
        tl.store(out + (FORWARD_ROW + 1) * step, -tl.sum(reverse, axis=0) / temperature)
