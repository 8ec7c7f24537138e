"""Grouped-query attention, causal.

Shapes: B batch, S sequence, H local heads, E head dimension.
"""

import torch
import torch.nn.functional as F
from torch import nn

from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.norms import HeadNorm
from megaokd.models.positions import Positions
from megaokd.models.rotary import rotate
from megaokd.parallel.linear import ColumnParallelLinear, HeadShard, RowParallelLinear
from megaokd.parallel.region import TensorParallel


class Attention(nn.Module):
    """Projections to this rank's heads, their attention, the sum over the ranks: [B, S or S/tp, D] -> the same."""

    def __init__(self, arch: DecoderArchitecture, tp: TensorParallel) -> None:
        super().__init__()
        self.tp = tp
        self.head_dim = arch.head_dim
        self.scale = (arch.query_pre_attn_scalar or arch.head_dim) ** -0.5
        queries = HeadShard(arch.num_heads, arch.head_dim, tp)
        keys = HeadShard(arch.num_kv_heads, arch.head_dim, tp)
        self.queries_per_key = queries.local_heads // keys.local_heads
        self.q_proj = ColumnParallelLinear(arch.hidden_size, queries.layout(), bias=arch.qkv_bias)
        self.k_proj = ColumnParallelLinear(arch.hidden_size, keys.layout(), bias=arch.qkv_bias)
        self.v_proj = ColumnParallelLinear(arch.hidden_size, keys.layout(), bias=arch.qkv_bias)
        self.o_proj = RowParallelLinear(queries.layout(), arch.hidden_size, tp, bias=arch.output_bias)
        self.q_norm = HeadNorm(arch, tp) if arch.qk_norm else None
        self.k_norm = HeadNorm(arch, tp) if arch.qk_norm else None

    def forward(self, x: torch.Tensor, positions: Positions) -> torch.Tensor:
        x = self.tp.enter(x)
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        if positions.rotary is not None:
            q, k = rotate(q, positions.rotary), rotate(k, positions.rotary)
        if positions.places is not None:
            return self.o_proj(self._of_one(q, k, v, positions))
        if positions.kept is not None:
            positions.kept.begin(k, v)
        if self.queries_per_key > 1:
            k, v = (t.repeat_interleave(self.queries_per_key, dim=1) for t in (k, v))
        mask = positions.mask
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=self.scale)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def _of_one(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: Positions) -> torch.Tensor:
        """One token a row, [B, heads, 1, E] each, on the keys of all its positions: [B, 1, heads * E].

        The queries that share a key stand in the place of the sequence, so that kept keys are not repeated.
        """
        assert positions.kept is not None
        assert positions.places is not None
        assert positions.mask is not None
        width = positions.mask.shape[-1]
        k, v = (kept[:, :, :width] for kept in positions.kept.extend(k, v, positions.places))
        q = q.squeeze(2).unflatten(1, (-1, self.queries_per_key))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=positions.mask, scale=self.scale)
        return y.flatten(1).unsqueeze(1)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, S, heads * E] -> [B, heads, S, E]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
