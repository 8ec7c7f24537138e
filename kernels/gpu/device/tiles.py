"""What the kernels share: where a row lies, and loads and stores of its tiles.

A row is walked in blocks of BLOCK columns, each a tile [BLOCK / VECTOR, VECTOR]; VECTOR elements are the 16 bytes that
one instruction moves, so that axis 1 of a tile never leaves a thread. The first block begins at the 16-byte boundary at
or below the row's first column, `lead` columns before it. Blocks that lie wholly inside the row are moved without a
mask: a mask, or an address that the compiler cannot prove aligned, splits the 128-bit access into single elements. At
the edges, where that cannot be helped, a block is taken in four steps, each a quarter of every row of the tile: code
that keeps 16 masked elements a thread in flight would set the registers of the whole kernel.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
IGNORED = tl.constexpr(-100)
NOWHERE = tl.constexpr(1 << 30)

# Numbers that a compiled kernel must not depend on.
UNSPECIALIZED = [
    *("num_tokens", "num_columns", "first_id", "blocks_per_part", "scalars_stride"),
    *(
        f"{tensor}_{what}"
        for tensor in ("student", "teacher", "student_out", "teacher_out")
        for what in ("stride", "offset")
    ),
]


@triton.jit
def row_lead(row, stride, offset, VECTOR: tl.constexpr):
    """Columns between the boundary below a row's first column and that column; offset is where row 0 begins."""
    return ((row * stride + offset) % VECTOR).to(tl.int32)


@triton.jit
def row_base(row, stride, offset, lead, ALIGNED: tl.constexpr, VECTOR: tl.constexpr):
    """Element at which a row's first tile begins; ALIGNED: the launcher has seen that it is a multiple of VECTOR."""
    base = row * stride + offset - lead
    if ALIGNED:
        base = tl.multiple_of(base, VECTOR)
    return base


@triton.jit
def part_blocks(part, blocks_per_part, lead, num_columns, BLOCK: tl.constexpr):
    """First and last (excluded) block of a part of a row, and the same of its blocks that lie wholly inside the row."""
    first = part * blocks_per_part
    last = tl.minimum(first + blocks_per_part, tl.cdiv(lead + num_columns, BLOCK))
    first_whole = tl.maximum(first, (lead > 0).to(tl.int32))
    last_whole = tl.minimum(last, (lead + num_columns) // BLOCK)
    return first, last, first_whole, last_whole


@triton.jit
def step_width(EDGE: tl.constexpr, VECTOR: tl.constexpr):
    """Columns of each row of a tile that one step takes: all, at an edge a quarter."""
    width: tl.constexpr = VECTOR // 4 if EDGE else VECTOR
    return width


@triton.jit
def step_positions(step, BLOCK: tl.constexpr, VECTOR: tl.constexpr, WIDTH: tl.constexpr):
    """Positions in the row of a step's columns, [BLOCK / VECTOR, WIDTH]; a block has VECTOR / WIDTH steps."""
    STEPS: tl.constexpr = VECTOR // WIDTH
    groups = tl.arange(0, BLOCK // VECTOR)
    start = (step // STEPS) * BLOCK + (step % STEPS) * WIDTH
    return start + (groups[:, None] * VECTOR + tl.arange(0, WIDTH)[None, :])


@triton.jit
def load_tile(pointer, position, lead, num_columns, MASKED: tl.constexpr):
    """A tile in fp32; columns outside the row read as -inf."""
    if MASKED:
        column = position - lead
        inside = (column >= 0) & (column < num_columns)
        return tl.load(pointer + position, mask=inside, other=-float("inf")).to(tl.float32)
    return tl.load(pointer + position).to(tl.float32)


@triton.jit
def store_tile(pointer, position, lead, num_columns, value, MASKED: tl.constexpr):
    """Rounds a tile to the output's dtype and writes the columns that are inside the row."""
    value = value.to(pointer.dtype.element_ty)
    if MASKED:
        column = position - lead
        tl.store(pointer + position, value, mask=(column >= 0) & (column < num_columns))
    else:
        tl.store(pointer + position, value)
