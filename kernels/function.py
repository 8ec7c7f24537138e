"""The autograd Function of the loss: one pass, one all-gather, a merge; backward is elementwise and silent."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import Backend
from .collectives import gather_ranks
from .layout import Logits, row_views
from .merge import Merged, merge_mixtures, merge_statistics
from .spec import LossSpec, metric_of
from .terms import Term


def _parts(
    student: Tensor, teacher: Tensor | None, labels: Tensor, *outputs: Tensor | None
) -> list[tuple[slice, Logits, list[Tensor | None]]]:
    """The call's rows as matrices: which rows, their logits, and the same rows of the outputs."""
    parts = []
    for rows, (student_rows, teacher_rows, *output_rows) in row_views(student, teacher, *outputs):
        assert student_rows is not None
        parts.append((rows, Logits(student_rows, teacher_rows, labels[rows]), output_rows))
    return parts


def merged_values(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    spec: LossSpec,
    group: dist.ProcessGroup | None,
    backend: Backend,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Scalars for backward [K, N] in the computing dtype, and every metric [N] in fp64 with 0 where ignored.

    labels  [N]
    Collectives: one all-gather, two with two-pass terms.
    """
    parts = _parts(student, teacher, labels)
    local = torch.cat([backend.statistics(logits, spec) for _, logits, _ in parts], dim=1)
    merged = merge_statistics(gather_ranks(local, group), spec)
    scalars = torch.stack(merged.scalars).to(local.dtype)
    if spec.mixtures:
        sums = torch.cat([backend.mixtures(logits, scalars[:, rows], spec) for rows, logits, _ in parts], dim=1)
        mixed = merge_mixtures(gather_ranks(sums, group), spec)
        scalars = torch.cat([scalars, torch.stack(mixed.scalars).to(local.dtype)])
        merged = Merged([], merged.metrics | mixed.metrics)
    return scalars, _finished(merged.metrics, labels, spec)


def _finished(metrics: dict[str, Tensor], labels: Tensor, spec: LossSpec) -> dict[str, Tensor]:
    """Divergences times tau^2, ignored tokens 0, labels that do not exist NaN (found on the CPU before, see `loss`)."""
    ignored = labels == -100
    unknown = (labels < 0) | (labels >= spec.vocab_size)
    finished = {}
    for name in spec.metric_names:
        value = metrics[name]
        if not name.startswith(("student_", "teacher_", "top1_")):
            value = value * spec.temperature**2
        finished[name] = value.masked_fill(unknown, torch.nan).masked_fill(ignored, 0.0)
    return finished


def weighted_sum(terms: tuple[Term, ...], side: str, metrics: dict[str, Tensor]) -> Tensor:
    """The objective of one side, [N]; a term of weight 0 is not touched, so that its infinity stays its own."""
    total = torch.zeros_like(metrics["student_ce"])
    for term in terms:
        if term.weight:
            total = total + term.weight * metrics[metric_of(term, side)]
    return total


class DistillationLoss(torch.autograd.Function):
    """Both objectives per token, [N], and the metrics stacked [M, N].

    Collectives: one all-gather forward (two with jsd, skew or tvd terms), none backward.
    Saved: both logit tensors as they came, the labels, and 8 numbers a token plus 3 for each two-pass term.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        spec: LossSpec,
        group: dist.ProcessGroup | None,
        backend: Backend,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """student, teacher [..., V_local]; labels [N], N the product of the leading dimensions."""
        scalars, metrics = merged_values(student, teacher, labels, spec, group, backend)
        student_loss = weighted_sum(spec.student, "student", metrics).to(scalars.dtype)
        teacher_loss = weighted_sum(spec.teacher, "teacher", metrics).to(scalars.dtype)
        stacked = torch.stack(list(metrics.values())).to(scalars.dtype)
        ctx.save_for_backward(student, teacher, labels, scalars)
        ctx.spec, ctx.backend = spec, backend
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*([stacked] if spec.trains_teacher else [stacked, teacher_loss]))
        return student_loss, teacher_loss, stacked

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, student_upstream: Tensor | None, teacher_upstream: Tensor | None, _: None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        """Elementwise from the logits and the saved scalars; the result is this shard's gradient, not a partial sum."""
        student, teacher, labels, scalars = ctx.saved_tensors
        wants_student = ctx.needs_input_grad[0] and student_upstream is not None
        wants_teacher = ctx.needs_input_grad[1] and teacher_upstream is not None and ctx.spec.trains_teacher
        student_grad = torch.empty(student.shape, dtype=student.dtype, device=student.device) if wants_student else None
        teacher_grad = torch.empty(teacher.shape, dtype=teacher.dtype, device=teacher.device) if wants_teacher else None
        for rows, logits, (student_out, teacher_out) in _parts(student, teacher, labels, student_grad, teacher_grad):
            ctx.backend.gradients(
                logits,
                scalars[:, rows],
                ctx.spec,
                None if student_upstream is None else student_upstream[rows],
                None if teacher_upstream is None else teacher_upstream[rows],
                student_out,
                teacher_out,
            )
        return student_grad, teacher_grad, None, None, None, None
