"""The tensor-parallel region: what crosses its border, forward and backward.

Outside the region activations are replicated over the tensor-parallel ranks or, with sequence parallelism, split along
the sequence; inside it every rank holds all tokens and its own share of the heads or channels. `enter` and `leave` are
the only collectives of a decoder layer: two each way, whatever the number of matrices inside.

    enter    forward: identity (or all-gather of the sequence)    backward: all-reduce (or reduce-scatter)
    leave    forward: all-reduce (or reduce-scatter)              backward: identity (or all-gather)

These are the f and g operators of Megatron-LM (arXiv 1909.08053) and its sequence parallelism (arXiv 2205.05198).
Activations are [batch, sequence, hidden]; the sequence is dimension 1.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megaokd.mesh import Axis

SEQUENCE_DIM = 1


@dataclass(frozen=True)
class TensorParallel:
    """The tensor-parallel group of a model and how activations lie outside its regions."""

    group: dist.ProcessGroup | None = None
    rank: int = 0
    size: int = 1
    sequence_parallel: bool = False

    @classmethod
    def on(cls, axis: Axis, *, sequence_parallel: bool) -> "TensorParallel":
        """The tensor axis of a mesh; sequence parallelism means nothing where the axis has one rank."""
        return cls(axis.group, axis.rank, axis.size, sequence_parallel and axis.size > 1)

    @property
    def sequence_parts(self) -> int:
        """Into how many parts the sequence is split outside the regions."""
        return self.size if self.sequence_parallel else 1

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """Before column-parallel matrices: [B, S or S/tp, D] -> [B, S, D]."""
        if self.size == 1:
            return x
        return _apply(_GatherSequence if self.sequence_parallel else _Copy, x, self)

    def leave(self, x: torch.Tensor) -> torch.Tensor:
        """Sum the ranks' partial results: [B, S, D] -> [B, S or S/tp, D]."""
        if self.size == 1:
            return x
        return _apply(_ScatterSequence if self.sequence_parallel else _Reduce, x, self)

    def enter_replicated(self, x: torch.Tensor) -> torch.Tensor:
        """`enter` for rows that every rank already holds, with or without sequence parallelism; x: [T, D]."""
        return x if self.size == 1 else _apply(_Copy, x, self)

    def gather_sequence(self, x: torch.Tensor) -> torch.Tensor:
        """All tokens on every rank, for consumers that are replicated: [B, S/tp, D] -> [B, S, D]. No-op otherwise.

        The consumer's gradient is complete on every rank: backward keeps this rank's tokens, without communication.
        """
        return _apply(_GatherReplicated, x, self) if self.sequence_parallel else x


def _apply(function: Any, x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    result: torch.Tensor = function.apply(x, tp)
    return result


def _all_reduce(x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    total = x.contiguous().clone()
    dist.all_reduce(total, group=tp.group)
    return total


def _all_gather_sequence(x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    parts = x.new_empty(tp.size, *x.shape)
    dist.all_gather_single(parts.flatten(0, 1), x.contiguous(), group=tp.group)
    return parts.movedim(0, SEQUENCE_DIM).flatten(SEQUENCE_DIM, SEQUENCE_DIM + 1)


def _reduce_scatter_sequence(x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
    assert x.shape[SEQUENCE_DIM] % tp.size == 0, "the batch is padded to a multiple of the tensor-parallel size"
    parts = x.unflatten(SEQUENCE_DIM, (tp.size, -1)).movedim(SEQUENCE_DIM, 0).contiguous()
    own = torch.empty_like(parts[0])
    dist.reduce_scatter_single(own, parts.flatten(0, 1), group=tp.group)
    return own


class _Copy(torch.autograd.Function):
    """f: identity forward, all-reduce backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
        ctx.tp = tp
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _all_reduce(grad, ctx.tp), None


class _Reduce(torch.autograd.Function):
    """g: all-reduce forward, identity backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
        return _all_reduce(x, tp)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


class _GatherSequence(torch.autograd.Function):
    """All-gather forward, reduce-scatter backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
        ctx.tp = tp
        return _all_gather_sequence(x, tp)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _reduce_scatter_sequence(grad, ctx.tp), None


class _ScatterSequence(torch.autograd.Function):
    """Reduce-scatter forward, all-gather backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
        ctx.tp = tp
        return _reduce_scatter_sequence(x, tp)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _all_gather_sequence(grad, ctx.tp), None


class _GatherReplicated(torch.autograd.Function):
    """All-gather forward, this rank's slice backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, tp: TensorParallel) -> torch.Tensor:
        ctx.tp = tp
        return _all_gather_sequence(x, tp)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.chunk(ctx.tp.size, SEQUENCE_DIM)[ctx.tp.rank].contiguous(), None
