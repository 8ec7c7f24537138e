"""Backend "eager": plain torch operations over a few rows at a time, on any device.

Temporaries are a bounded number of small blocks (`blocks.CPU_BLOCK` keeps them in a core's cache), so nothing of the
size of the logits is ever allocated besides the gradients that are asked for. Rows without a label are never read.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from . import formulas
from .blocks import load, row_blocks
from .gradient import label_weight, side_gradient, side_of
from .layout import Logits, Target, compute_dtype
from .spec import NUM_MIXTURE_SUMS, LossSpec, Stat
from .terms import TOP
from .top import inside_top


def statistics(logits: Logits, spec: LossSpec) -> Tensor:
    """`spec.Stat` of this shard, [K, n]; rows without a label and shards without columns hold MAX = -inf, sums of 0."""
    dtype = compute_dtype(logits)
    out = torch.zeros(spec.num_stats, len(logits.labels), dtype=dtype, device=logits.labels.device)
    sides = [Stat.STUDENT_MAX] if logits.teacher is None else [Stat.STUDENT_MAX, Stat.TEACHER_MAX]
    out[sides] = -torch.inf
    if spec.num_columns == 0:
        return out
    for rows in row_blocks(logits, spec):
        student = load(logits.student, rows, spec, dtype)
        teacher = None if logits.teacher is None else load(logits.teacher, rows, spec, dtype)
        out[:, rows] = torch.stack(formulas.block_statistics(student, teacher, spec.temperature))
        local_label = logits.labels[rows] - spec.first
        for side, x in zip(sides, (student, teacher), strict=False):
            assert x is not None
            out[side + Stat.STUDENT_LABEL, rows] = formulas.label_logit(x, local_label)
            out[side + Stat.STUDENT_ARGMAX, rows] = (x.argmax(1) + spec.first).to(dtype)
    return out


def mixtures(logits: Logits, scalars: Tensor, spec: LossSpec) -> Tensor:
    """`formulas.mixture_sums` of this shard for every mixture of the objective, [3 * mixtures, n]."""
    dtype = compute_dtype(logits)
    assert logits.teacher is not None
    out = torch.zeros(NUM_MIXTURE_SUMS * len(spec.mixtures), len(logits.labels), dtype=dtype, device=scalars.device)
    for index, mixture in enumerate(spec.mixtures):
        if mixture.kind == TOP:
            out[NUM_MIXTURE_SUMS * index + 1 : NUM_MIXTURE_SUMS * (index + 1)] = -torch.inf  # logarithms of empty sums
    if spec.num_columns == 0:
        return out
    for rows in row_blocks(logits, spec):
        student, teacher = (load(x, rows, spec, dtype) for x in (logits.student, logits.teacher))
        known = scalars[:, rows]
        inside = {top: inside_top(teacher, known, spec.threshold_row(top)) for top in spec.tops}
        sums = formulas.block_mixtures(student, teacher, known, spec.mixtures, spec.temperature, inside)
        out[:, rows] = torch.stack(sums)
    return out


def gradients(logits: Logits, scalars: Tensor, spec: LossSpec, targets: Mapping[str, Target]) -> None:
    """Writes the gradients of the sides, "student" or "teacher", that have a target.

    A gradient is upstream times the derivative of the side's objective. An out may be the side's logits themselves;
    its padding and rows without a label get 0.
    """
    dtype = compute_dtype(logits)
    for target in targets.values():
        target.out[:, spec.num_columns :] = 0
        target.out[logits.labels == -100] = 0
    if spec.num_columns == 0:
        return
    for rows in row_blocks(logits, spec):
        student = load(logits.student, rows, spec, dtype)
        teacher = None if logits.teacher is None else load(logits.teacher, rows, spec, dtype)
        local_label = logits.labels[rows] - spec.first
        finished = []  # both are computed before either is written: an out may be the logits themselves
        for name, target in targets.items():
            own, other = (student, teacher) if name == "student" else (teacher, student)
            assert own is not None
            gradient = _block_gradient(name, own, other, scalars[:, rows], local_label, spec)
            finished.append((target.out, gradient * target.upstream[rows].to(dtype).unsqueeze(1)))
        for out, gradient in finished:
            out[rows, : spec.num_columns] = gradient.to(out.dtype)


def _block_gradient(
    name: str, own: Tensor, other: Tensor | None, scalars: Tensor, local_label: Tensor, spec: LossSpec
) -> Tensor:
    side, weights = side_of(spec, name)
    gradient = side_gradient(side, weights, own, other, scalars)
    owned = (local_label >= 0) & (local_label < own.shape[1])
    column = local_label.clamp(0, own.shape[1] - 1).unsqueeze(1)
    return gradient.scatter_add_(1, column, (-label_weight(side, weights) * owned.to(own.dtype)).unsqueeze(1))
