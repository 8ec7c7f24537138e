"""One decoder for the Llama family, or the slice of it that a pipeline stage holds.

Shapes: B batch, S sequence, D hidden size, H local heads, K local KV heads, E head dimension. What tensor parallelism
does is in `parallel/`: here it shows only as `enter` in front of parallel matrices.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.rotary import RotaryTable, rotate
from megaokd.parallel.layout import TensorLayout, named_layouts, replicated
from megaokd.parallel.linear import ColumnParallelLinear, HeadShard, RowParallelLinear, even_layout
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabParallelEmbedding, VocabParallelHead, VocabRange


@dataclass(frozen=True)
class DecoderSlice:
    """The part of a decoder that one pipeline stage holds."""

    layers: range
    first: bool = True
    """Holds the embedding."""
    last: bool = True
    """Holds the final norm and the head."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in fp32 at least."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, causal."""

    def __init__(self, arch: DecoderArchitecture, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.head_dim = arch.head_dim
        queries = HeadShard(arch.num_heads, arch.head_dim, tp)
        keys = HeadShard(arch.num_kv_heads, arch.head_dim, tp)
        self.queries_per_key = queries.local_heads // keys.local_heads
        self.q_proj = ColumnParallelLinear(arch.hidden_size, queries.layout(), bias=arch.attention_bias)
        self.k_proj = ColumnParallelLinear(arch.hidden_size, keys.layout(), bias=arch.attention_bias)
        self.v_proj = ColumnParallelLinear(arch.hidden_size, keys.layout(), bias=arch.attention_bias)
        self.o_proj = RowParallelLinear(queries.layout(), arch.hidden_size, tp, bias=arch.attention_bias)

    def forward(self, x: torch.Tensor, rotary: RotaryTable) -> torch.Tensor:
        x = self.tp.enter(x)
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, rotary), rotate(k, rotary)
        if self.queries_per_key > 1:
            k, v = (t.repeat_interleave(self.queries_per_key, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, heads * E] -> [B, heads, S, E]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, arch: DecoderArchitecture, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        channels = even_layout(arch.intermediate_size, tp, dim=0)
        self.gate_proj = ColumnParallelLinear(arch.hidden_size, channels, bias=arch.mlp_bias)
        self.up_proj = ColumnParallelLinear(arch.hidden_size, channels, bias=arch.mlp_bias)
        self.down_proj = RowParallelLinear(channels, arch.hidden_size, tp, bias=arch.mlp_bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.tp.enter(x)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, arch: DecoderArchitecture, tp: TensorParallel) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(arch.hidden_size, arch.norm_eps)
        self.self_attn = Attention(arch, tp)
        self.post_attention_layernorm = RMSNorm(arch.hidden_size, arch.norm_eps)
        self.mlp = MLP(arch, tp)

    def forward(self, x: torch.Tensor, rotary: RotaryTable) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """The slice of a decoder on one stage. Parameter names are those of the whole model, whatever the slice.

    forward: token ids [B, S] on the first stage, hidden states [B, S or S/tp, D] elsewhere -> hidden states, normed on
    the last stage. Logits are made by `head`, by whoever knows which tokens need them.
    """

    def __init__(
        self,
        arch: DecoderArchitecture,
        part: DecoderSlice,
        vocab: VocabRange,
        tp: TensorParallel,
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.arch = arch
        self.part = part
        self.tp = tp
        self.recompute = recompute
        self.embed_tokens = VocabParallelEmbedding(vocab, arch.vocab_size, arch.hidden_size, tp) if part.first else None
        self.layers = nn.ModuleDict({str(index): DecoderLayer(arch, tp) for index in part.layers})
        self.norm = RMSNorm(arch.hidden_size, arch.norm_eps) if part.last else None
        self.head = self._build_head(vocab) if part.last else None

    def _build_head(self, vocab: VocabRange) -> VocabParallelHead:
        if self.arch.tied_head and self.embed_tokens is not None:
            weight = self.embed_tokens.weight
        else:
            weight = nn.Parameter(torch.empty(vocab.rows, self.arch.hidden_size))
        return VocabParallelHead(weight, vocab.layout(self.arch.vocab_size), self.tp)

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
        return named_layouts(self, whole)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.embed_tokens is not None:
            x = self.embed_tokens(x)
            x = x.to(torch.promote_types(x.dtype, torch.float32))  # the residual stream is fp32 at least
        sequence = x.shape[1] * (self.tp.size if self.tp.sequence_parallel else 1)
        rotary = RotaryTable.build(sequence, self.arch.head_dim, self.arch.rope_theta, x.device)
        for layer in self.layers.values():
            needs_grad = torch.is_grad_enabled() and (x.requires_grad or _trains(layer))
            recompute = self.recompute and needs_grad
            x = checkpoint(layer, x, rotary, use_reentrant=False) if recompute else layer(x, rotary)
        return x if self.norm is None else self.norm(x)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
