"""One decoder for every family, or the slice of it that a pipeline stage holds.

Shapes: B batch, S sequence, D hidden size. What tensor parallelism does is in `parallel/`: in attention and MLP it
shows only as `enter` in front of parallel matrices.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from megaokd.models.architecture import AttentionKind, DecoderArchitecture
from megaokd.models.attention import Attention
from megaokd.models.mlp import MLP
from megaokd.models.norms import build_norm
from megaokd.models.positions import PositionEmbedding, Positions
from megaokd.parallel.kept import take_kept
from megaokd.parallel.layout import TensorLayout, named_layouts, replicated
from megaokd.parallel.linear import OnlineModule, with_online
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.rows import RowGroups
from megaokd.parallel.vocab import VocabParallelEmbedding, VocabParallelHead, VocabRange

VOCABULARY = ("embed_tokens.weight", "head.weight")
"""The parameters that are split along the vocabulary."""


@dataclass(frozen=True)
class DecoderSlice:
    """The part of a decoder that one pipeline stage holds."""

    layers: range
    first: bool = True
    """Holds the embedding."""
    last: bool = True
    """Holds the final norm and the head."""


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); or both at once, x + attention(norm(x)) + mlp(norm(x))."""

    def __init__(self, arch: DecoderArchitecture, tp: TensorParallel) -> None:
        super().__init__()
        self.parallel_residual = arch.parallel_residual
        self.input_layernorm = build_norm(arch)
        self.self_attn = Attention(arch, tp)
        self.attention_output_norm = build_norm(arch) if arch.output_norms else nn.Identity()
        self.post_attention_layernorm = build_norm(arch)
        self.mlp = MLP(arch, tp)
        self.mlp_output_norm = build_norm(arch) if arch.output_norms else nn.Identity()
        self.online: OnlineModule | None = None

    def forward(self, x: torch.Tensor, positions: Positions) -> torch.Tensor:
        attended = x + self.attention_output_norm(self.self_attn(self.input_layernorm(x), positions))
        seen = x if self.parallel_residual else attended
        x = attended + self.mlp_output_norm(self.mlp(self.post_attention_layernorm(seen)))
        return with_online(x, self.online, x)


class Decoder(nn.Module):
    """The slice of a decoder on one stage. Parameter names are those of the whole model, whatever the slice.

    forward: token ids [B, S] on the first stage, hidden states [B, S or S/tp, D] elsewhere -> hidden states, normed on
    the last stage. Logits are made by `head`, by whoever knows which tokens need them. Where several texts share a row,
    `places` [B, S] gives each token's position in its own: each 0 begins another, and no token sees another text's.

    With `rows` the layers are split over `tp`, a part of the tensor-parallel ranks, and hidden states are those of this
    group's rows, [B / groups, ...]; token ids and `places` are of all rows, and the vocabulary is split over all ranks.
    """

    def __init__(
        self,
        arch: DecoderArchitecture,
        part: DecoderSlice,
        vocab: VocabRange,
        tp: TensorParallel,
        *,
        recompute: bool = False,
        rows: RowGroups | None = None,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.part = part
        self.tp = tp
        self.rows = rows
        self.recompute = recompute
        self.embed_tokens = (
            VocabParallelEmbedding(vocab, arch.vocab_size, arch.hidden_size, tp, rows) if part.first else None
        )
        self.embed_positions = self._build_positions() if part.first and arch.rotary is None else None
        self.layers = nn.ModuleDict({str(index): DecoderLayer(arch, tp) for index in part.layers})
        self.norm = build_norm(arch) if part.last else None
        self.head = self._build_head(vocab) if part.last else None
        self.online: OnlineModule | None = None
        self._known_positions: tuple[int, dict[AttentionKind, Positions]] | None = None

    def _build_head(self, vocab: VocabRange) -> VocabParallelHead:
        if self.arch.tied_head and self.embed_tokens is not None:
            weight = self.embed_tokens.weight
        else:
            weight = nn.Parameter(torch.empty(vocab.rows, self.arch.hidden_size))
        tp = self.tp if self.rows is None else self.rows.tensor
        return VocabParallelHead(weight, vocab.layout(self.arch.vocab_size), tp)

    def _build_positions(self) -> PositionEmbedding:
        arch = self.arch
        return PositionEmbedding(arch.max_positions, arch.hidden_size, arch.position_offset, self.tp)

    @property
    def holds_tied_copy(self) -> bool:
        """Whether the head is a copy of an embedding that another stage holds."""
        return self.arch.tied_head and self.head is not None and self.embed_tokens is None

    def named_layouts(self) -> Iterator[tuple[str, nn.Parameter, TensorLayout]]:
        """(name, parameter, layout) of every parameter of the slice, online modules included.

        With sequence parallelism a replicated parameter outside the tensor-parallel regions sees this rank's tokens
        only, so its gradient is partial.
        """
        whole = replicated(self.tp.size, self.tp.rank, partial=self.tp.sequence_parallel)
        for name, parameter, layout in named_layouts(self, whole):
            if self.rows is not None and name not in VOCABULARY:
                layout = self.rows.shared(layout)
            yield name, parameter, layout

    def kept_tokens(self, hidden: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """What the head takes: of `forward`'s hidden states those of kept tokens, the same [T, D] on every rank.

        keep: bool [B, S] in host memory, the same on every rank. Collectives forward: with sequence parallelism one
        all-gather of [B, S/tp, D]; with `rows` that of `RowGroups.gather_kept`. None backward.
        """
        whole = self.tp.gather_sequence(hidden)
        return take_kept(whole, keep) if self.rows is None else self.rows.gather_kept(whole, keep)

    def forward(self, x: torch.Tensor, places: torch.Tensor | None = None) -> torch.Tensor:
        first = self.part.layers.start
        if self.rows is not None and places is not None:
            places = self.rows.own(places)
        return self.run_from(self.run_below(x, first, places), first, places)

    def run_below(self, x: torch.Tensor, layer: int, places: torch.Tensor | None = None) -> torch.Tensor:
        """The slice's embedding and its layers below `layer`: what `forward` takes -> hidden states."""
        if self.embed_tokens is not None:
            x = self._embed(self.embed_tokens, x, places)
        return self._run_layers(x, range(self.part.layers.start, min(layer, self.part.layers.stop)), places)

    def run_from(self, x: torch.Tensor, layer: int, places: torch.Tensor | None = None) -> torch.Tensor:
        """The slice's layers from `layer` on, and its final norm: hidden states -> what `forward` returns."""
        x = self._run_layers(x, range(max(layer, self.part.layers.start), self.part.layers.stop), places)
        if self.norm is None:
            return x
        x = self.norm(x)
        return with_online(x, self.online, x)

    def run_with(self, tokens: torch.Tensor, places: torch.Tensor, positions: Sequence[Positions]) -> torch.Tensor:
        """A whole decoder on tokens [B, S] at `places` [B, S], with what its layers know of positions, one a layer.

        Returns hidden states, normed, [B, S, D]. For generation: `Positions.kept` brings keys and values of earlier
        tokens. Collectives: those of `forward`.
        """
        assert self.embed_tokens is not None, "generation begins with tokens"
        assert self.norm is not None, "generation ends with logits"
        x = self._embed(self.embed_tokens, tokens, places)
        for layer, known in zip(self.layers.values(), positions, strict=True):
            x = layer(x, known)
        x = self.norm(x)
        return with_online(x, self.online, x)

    def _run_layers(self, x: torch.Tensor, layers: range, places: torch.Tensor | None) -> torch.Tensor:
        positions = self._positions(x.shape[1] * (self.tp.size if self.tp.sequence_parallel else 1), x.device)
        if places is not None:
            positions = {kind: known.within(places) for kind, known in positions.items()}
        for index in layers:
            layer, known = self.layers[str(index)], positions[self.arch.attention_kind(index)]
            needs_grad = torch.is_grad_enabled() and (x.requires_grad or _trains(layer))
            recompute = self.recompute and needs_grad
            x = checkpoint(layer, x, known, use_reentrant=False) if recompute else layer(x, known)
        return x

    def _embed(
        self, embed_tokens: VocabParallelEmbedding, tokens: torch.Tensor, places: torch.Tensor | None
    ) -> torch.Tensor:
        """The beginning of the residual stream, which is fp32 at least."""
        x = embed_tokens(tokens)
        scale = 1.0
        if self.arch.scaled_embeddings:  # rounded to the stored dtype, as in the model's own training
            scale = torch.tensor(self.arch.hidden_size**0.5, dtype=x.dtype).item()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = x * scale if scale != 1.0 else x
        return x if self.embed_positions is None else self.embed_positions(x, places)

    def _positions(self, sequence: int, device: torch.device) -> dict[AttentionKind, Positions]:
        """What each kind of layer needs; kept for the next batch of the same width."""
        if self._known_positions is None or self._known_positions[0] != sequence:
            kinds = {self.arch.attention_kind(index) for index in self.part.layers}
            self._known_positions = sequence, {kind: Positions.build(kind, sequence, device) for kind in kinds}
        return self._known_positions[1]


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
