"""One pass of a micro-batch through a model's slice: what is kept for backward, what the tensor-parallel ranks send."""

from functools import lru_cache

from megaokd.cost.layer_cost import layer_cost
from megaokd.cost.layer_shape import LayerKind, Shape
from megaokd.cost.layer_tape import RESIDUAL, Activation, LayerCost, Tape, finished, residual_stream
from megaokd.cost.parts import Part
from megaokd.cost.traffic import Traffic
from megaokd.models.architecture import DecoderArchitecture


@lru_cache(maxsize=4096)
def part_cost(part: Part, shape: Shape, *, recompute: bool) -> LayerCost:
    """Embedding, layers, final norm; the heads belong to the loss."""
    total = _embedding(part, shape) if part.part.first else LayerCost()
    for kind, masked, plain in part.kinds():
        for count, mask in ((masked, True), (plain, shape.packed)):
            total += layer_cost(part.arch, shape, kind, recompute=recompute, masked=mask).times(count)
    if part.num_again:
        frozen = layer_cost(part.arch, shape, LayerKind(), recompute=False, masked=shape.packed)
        total += frozen.times(part.num_again)
    if part.part.last:
        total += _final_norm(part, shape)
    tables = _tables(part.arch, shape) if _records_rotation(part, shape) and not recompute else 0
    return total + LayerCost(kept=tables)


def _embedding(part: Part, shape: Shape) -> LayerCost:
    """Kept: token ids; with a split vocabulary their place in this rank's share, and which belong to others.

    With row groups each rank looks up all rows, and a reduce-scatter leaves it those of its group.
    """
    tape = Tape(shape, trains=not part.frozen)
    looked_up = shape.tokens * shape.row_groups
    is_split = shape.tensor * shape.row_groups > 1
    if tape.trains:
        tape.keep_bytes(looked_up * (9 if is_split else 8))
    border = LayerCost()
    if shape.row_groups > 1:
        size = looked_up * part.arch.hidden_size * shape.stored
        border = LayerCost(
            forward=Traffic.of("reduce-scatter", "rows", size), backward=Traffic.of("all-gather", "rows", size)
        )
    tape.leave(Activation(shape.tokens, part.arch.hidden_size, shape.stored, grad=tape.trains))
    return border + finished(tape)


def _final_norm(part: Part, shape: Shape) -> LayerCost:
    tape = Tape(shape, trains=not part.frozen)
    normed = tape.norm(residual_stream(part.arch, shape, grad=part.moves_out), layer=part.arch.norm == "layer")
    if part.online is not None and part.online.kind == "head":
        tape.bottleneck(normed, part.online.rank)
    return finished(tape)


def _records_rotation(part: Part, shape: Shape) -> bool:
    """Whether backward keeps the tables of cos and sin themselves; under bf16 it keeps copies (`layer_cost`)."""
    turns = any(kind.moves for kind, _, _ in part.kinds())
    return turns and part.arch.rotary is not None and shape.product == RESIDUAL


def _tables(arch: DecoderArchitecture, shape: Shape) -> int:
    assert arch.rotary is not None
    kinds = 1 if arch.local_rotary is None else 2
    return kinds * 2 * shape.places * arch.rotary.dim * RESIDUAL
