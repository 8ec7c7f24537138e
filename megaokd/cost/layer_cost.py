"""A decoder layer on the tape of `layer_tape`: the order of `models/decoder.py`, `attention.py` and `mlp.py`."""

from functools import lru_cache

from megaokd.config import LinearName
from megaokd.cost.layer_shape import LayerKind, Shape
from megaokd.cost.layer_tape import RESIDUAL, Activation, LayerCost, Tape, finished, residual_stream
from megaokd.models.architecture import DecoderArchitecture


@lru_cache(maxsize=4096)
def layer_cost(
    arch: DecoderArchitecture, shape: Shape, kind: LayerKind, *, recompute: bool, masked: bool = False
) -> LayerCost:
    """One layer, one micro-batch. masked: its attention gets a mask, because of a window or of packed rows."""
    tape = Tape(shape, kind.trains, kind.online)
    x = residual_stream(arch, shape, grad=kind.needs)
    layer_norm = arch.norm == "layer"
    attended = tape.leave(_attention(tape, arch, tape.enter(tape.norm(x, layer=layer_norm)), masked))
    if arch.output_norms:
        attended = tape.norm(attended, layer=layer_norm)
    between = Activation(x.tokens, x.channels, RESIDUAL, x.grad or attended.grad)
    seen = x if arch.parallel_residual else between
    result = tape.leave(_mlp(tape, arch, tape.enter(tape.norm(seen, layer=layer_norm))))
    if arch.output_norms:
        result = tape.norm(result, layer=layer_norm)
    if kind.online is not None and kind.online.kind == "bottleneck":
        grad = between.grad or result.grad
        tape.bottleneck(Activation(x.tokens, x.channels, RESIDUAL, grad), kind.online.rank)
    if recompute and kind.moves:
        return finished(tape, recompute_from=x.tokens * x.channels * RESIDUAL)
    return finished(tape)


def _attention(tape: Tape, arch: DecoderArchitecture, x: Activation, masked: bool) -> Activation:
    shape = tape.shape
    queries = arch.num_heads // shape.tensor
    keys = max(1, arch.num_kv_heads // shape.tensor)
    names: tuple[tuple[LinearName, int], ...] = (("q_proj", queries), ("k_proj", keys), ("v_proj", keys))
    q, k, v = (tape.linear(name, x, heads * arch.head_dim) for name, heads in names)
    if arch.qk_norm:
        for y, heads in ((q, queries), (k, keys)):
            raw = Activation(y.tokens * heads, arch.head_dim, y.itemsize, y.grad)
            y.grad = tape.norm(raw).grad
    result = Activation(x.tokens, queries * arch.head_dim, shape.product, q.grad or k.grad or v.grad)
    if result.grad:
        if arch.rotary is not None and shape.product != RESIDUAL:  # cos and sin, copied for q and for k
            tape.keep_bytes(2 * shape.places * arch.rotary.dim * shape.product * (q.grad + k.grad))
        tape.keep_bytes(3 * x.tokens * queries * arch.head_dim * shape.product + RESIDUAL * x.tokens * queries)
        tape.keep(result)
        if masked:  # one added to the scores is made of it
            tape.keep_bytes((shape.rows if shape.packed else 1) * shape.width**2 * shape.product)
    return tape.linear("o_proj", result, arch.hidden_size)


def _mlp(tape: Tape, arch: DecoderArchitecture, x: Activation) -> Activation:
    channels = arch.intermediate_size // tape.shape.tensor
    gate = tape.linear("gate_proj", x, channels) if arch.gated_mlp else None
    up = tape.linear("up_proj", x, channels)
    if gate is None:
        activated = Activation(up.tokens, channels, up.itemsize, up.grad)
        if up.grad:
            tape.keep(activated if arch.activation == "relu" else up)
        return tape.linear("down_proj", activated, arch.hidden_size)
    if gate.grad or up.grad:
        tape.keep(gate)
    if gate.grad:
        tape.keep(up)
    product = Activation(x.tokens, channels, tape.shape.product, gate.grad or up.grad)
    return tape.linear("down_proj", product, arch.hidden_size)
