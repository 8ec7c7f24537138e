"""Which slice of a global tensor a rank holds.

Layout-independent initialisation, checkpoints, gradient sums and gradient norms all follow from this one description.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@dataclass(frozen=True)
class TensorLayout:
    """A parameter's place in the global tensor.

    Without `dim` the whole tensor is on every tensor-parallel rank. With it, this rank holds indices
    [start, start + length) of dimension `dim`, of which those from `size` on are padding.
    """

    dim: int | None = None
    start: int = 0
    length: int = 0
    size: int = 0
    copies: int = 1
    """How many tensor-parallel ranks hold this very slice."""
    first_copy: bool = True
    """Whether this rank is the first of them: it writes the slice to disk."""
    partial: bool = False
    """Backward leaves only this rank's share of the gradient: the copies must be summed once a step."""
    row_groups: int = 1
    """How many groups of ranks hold it, each with the gradient of its own rows: these are summed once a step, too."""

    @property
    def valid(self) -> int:
        """How many of the `length` indices exist in the global tensor."""
        return max(0, min(self.start + self.length, self.size) - self.start)

    @property
    def is_held(self) -> bool:
        """False for a rank whose whole share is padding: it has nothing to read or write."""
        return self.dim is None or self.valid > 0

    def global_shape(self, local: torch.Size) -> tuple[int, ...]:
        """The shape of the whole tensor, without padding."""
        if self.dim is None:
            return tuple(local)
        return (*local[: self.dim], self.size, *local[self.dim + 1 :])

    def held(self, dim: int) -> slice:
        """The indices of a dimension of the global tensor that this rank holds."""
        return slice(self.start, self.start + self.valid) if dim == self.dim else slice(None)

    def repeated(self, groups: int, rank: int) -> "TensorLayout":
        """The same slice where `groups` neighbouring ranks hold it instead of one; `rank` is this one among them."""
        return replace(self, copies=self.copies * groups, first_copy=self.first_copy and rank == 0, row_groups=groups)

    def take(self, whole: torch.Tensor) -> torch.Tensor:
        """This rank's valid part of a global tensor (a view)."""
        return whole if self.dim is None else whole.narrow(self.dim, min(self.start, self.size), self.valid)

    def valid_part(self, local: torch.Tensor) -> torch.Tensor:
        """The part of the local tensor that is not padding (a view)."""
        return local if self.dim is None else local.narrow(self.dim, 0, self.valid)


@runtime_checkable
class HasLayouts(Protocol):
    """A module that knows how its own parameters are sharded."""

    def layouts(self) -> dict[str, TensorLayout]:
        """Layout of each parameter that the module holds directly, by its local name."""
        ...


def replicated(tensor_size: int, tensor_rank: int, *, partial: bool) -> TensorLayout:
    """The layout of a parameter that every tensor-parallel rank holds whole."""
    return TensorLayout(copies=tensor_size, first_copy=tensor_rank == 0, partial=partial and tensor_size > 1)


def named_layouts(module: nn.Module, default: TensorLayout) -> Iterator[tuple[str, nn.Parameter, TensorLayout]]:
    """(name, parameter, layout) of every parameter; modules that say nothing hold `default`, replicated, parameters.

    A parameter that two modules share (a tied head) is listed once, under its first name.
    """
    seen: set[int] = set()
    for prefix, child in module.named_modules():
        known = child.layouts() if isinstance(child, HasLayouts) else {}
        for name, parameter in child.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{prefix}.{name}" if prefix else name, parameter, known.get(name, default)


def with_dim(layout: TensorLayout, dim: int) -> TensorLayout:
    """The same slice along another dimension."""
    return replace(layout, dim=dim)
