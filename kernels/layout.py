"""Views of ``[..., V_local]`` tensors as matrices of rows, without copying."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Logits:
    """Rows of both shards, [n, V_local] each, and their labels [n], -100 = no loss here."""

    student: Tensor
    teacher: Tensor | None
    labels: Tensor


@dataclass
class Target:
    """What one side's gradient is multiplied with, upstream [n], and where it goes, out [n, V_local]."""

    upstream: Tensor
    out: Tensor


def compute_dtype(logits: Logits) -> torch.dtype:
    """fp64 if either input is, else fp32."""
    inputs = [logits.student] if logits.teacher is None else [logits.student, logits.teacher]
    return torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32


def row_views(*tensors: Tensor | None) -> Iterator[tuple[slice, list[Tensor | None]]]:
    """Splits tensors of equal leading dimensions into the fewest parts that each can be seen as ``[n, V_local]``.

    ``logits[:, :-1]`` of a batch is one part per sequence, a contiguous tensor one part in all. Yields the slice of
    flattened rows and the views; None stays None.
    """
    yield from _split(0, list(tensors))


def _split(start: int, tensors: list[Tensor | None]) -> Iterator[tuple[slice, list[Tensor | None]]]:
    views = [None if x is None else _as_matrix(x) for x in tensors]
    if all(view is not None for view, x in zip(views, tensors, strict=True) if x is not None):
        num_rows = next(view.shape[0] for view in views if view is not None)
        yield slice(start, start + num_rows), views
        return
    parts = next(x.shape[0] for x in tensors if x is not None)
    for index in range(parts):
        inner = [None if x is None else x[index] for x in tensors]
        yield from _split(start, inner)
        start += next(x[..., 0].numel() if x.shape[-1] else x.shape[:-1].numel() for x in inner if x is not None)


def _as_matrix(x: Tensor) -> Tensor | None:
    """The view ``[n, V_local]``, or None where strides do not allow one."""
    rows = x.shape[:-1].numel()
    try:
        return x.view(rows, x.shape[-1])
    except RuntimeError:
        return None
