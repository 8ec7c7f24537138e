"""What must be summed before DeepSpeed reduces gradients over the data-parallel ranks.

Whatever the number of micro-batches and layers: one sum a step of the partial gradients of tensor-parallel copies, one
of the gradients that groups of ranks have of their own rows, and one for the two ends of a tied head.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from megaokd.engine.parameters import TrainableParameter
from megaokd.mesh import ParallelMesh
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.rows import ROW_BUCKET, RowGroups


@torch.no_grad()
def sum_partial_gradients(parameters: Sequence[TrainableParameter], tp: TensorParallel) -> None:
    """Sum the gradients of parameters whose copies each saw a part of the computation. One all-reduce.

    A slice that only some ranks share (replicated KV heads) is written at its place in the global tensor, so that one
    sum over the whole tensor-parallel group is right for all of them.
    """
    partial = [item for item in parameters if item.layout.partial and tp.size > 1]
    if not partial:
        return
    shapes = [item.layout.global_shape(item.parameter.shape) for item in partial]
    flat = torch.zeros(sum(torch.Size(shape).numel() for shape in shapes), device=partial[0].parameter.device)
    slices = []
    for item, whole in zip(partial, _views(flat, shapes), strict=True):
        part = item.layout.take(whole)
        slices.append(part)
        if item.parameter.grad is not None:
            part.copy_(item.parameter.grad)
    dist.all_reduce(flat, group=tp.group)
    for item, part in zip(partial, slices, strict=True):
        if item.parameter.grad is not None:
            item.parameter.grad.copy_(part)


@torch.no_grad()
def sum_row_gradients(parameters: Sequence[TrainableParameter], rows: RowGroups | None) -> None:
    """Sum the gradients of a trunk that row groups each ran on rows of their own. One all-reduce a bucket.

    Where a gradient is partial within its group as well, `sum_partial_gradients` has summed it over all ranks.
    """
    if rows is None:
        return
    gradients = []
    for item in parameters:
        if item.layout.row_groups > 1 and not item.layout.partial:
            assert item.parameter.grad is not None, f"{item.name} has no gradient"
            gradients.append(item.parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat, group=rows.group)
        for gradient, total in zip(bucket, _views(flat, [gradient.shape for gradient in bucket]), strict=True):
            gradient.copy_(total)


@torch.no_grad()
def sum_tied_gradients(parameters: Sequence[TrainableParameter], mesh: ParallelMesh) -> None:
    """Sum the gradients of an embedding and of the head that copies it on the last stage. One all-reduce at the ends.

    Both copies then take the same step and stay equal.
    """
    if mesh.ends is None:
        return
    for item in (p for p in parameters if p.tied):
        assert item.parameter.grad is not None
        dist.all_reduce(item.parameter.grad, group=mesh.ends)


def _buckets(tensors: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of up to `ROW_BUCKET` elements together, at least one each."""
    bucket: list[torch.Tensor] = []
    for tensor in tensors:
        if bucket and sum(member.numel() for member in bucket) + tensor.numel() > ROW_BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _views(flat: torch.Tensor, shapes: Sequence[tuple[int, ...]]) -> list[torch.Tensor]:
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [piece.view(shape) for piece, shape in zip(flat.split(sizes), shapes, strict=True)]
