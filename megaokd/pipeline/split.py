"""Which layers of a model go to which stage."""

from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import DecoderSlice


def split_model(arch: DecoderArchitecture, stages: int) -> list[DecoderSlice]:
    """Split a model over stages so that the slowest stage is as fast as possible.

    Cost is counted in matrix-product work a token: a layer's weights, and for the last stage the head's, plus about 16
    operations a logit for the loss. The embedding is a lookup and costs nothing.
    """
    query, key = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    layer_cost = arch.hidden_size * (2 * query + 2 * key + (3 if arch.gated_mlp else 2) * arch.intermediate_size)
    head_cost = arch.vocab_size * (arch.hidden_size + 16)
    counts = balance_layers(arch.num_layers, stages, layer_cost, head_cost)
    slices = []
    start = 0
    for stage, count in enumerate(counts):
        slices.append(DecoderSlice(range(start, start + count), first=stage == 0, last=stage == stages - 1))
        start += count
    return slices


def balance_layers(num_layers: int, stages: int, layer_cost: float, last_cost: float) -> list[int]:
    """Layers per stage, at least one each, minimising the largest cost; the last stage also pays `last_cost`."""
    assert 1 <= stages <= num_layers
    if stages == 1:
        return [num_layers]

    def slowest(on_last: int) -> float:
        fullest = -(-(num_layers - on_last) // (stages - 1))
        return max(fullest * layer_cost, on_last * layer_cost + last_cost)

    on_last = min(range(1, num_layers - stages + 2), key=lambda count: (slowest(count), -count))
    base, extra = divmod(num_layers - on_last, stages - 1)
    # Earlier stages keep more micro-batches in flight, so the larger shares go to the later ones.
    return [base + (stage >= stages - 1 - extra) for stage in range(stages - 1)] + [on_last]
