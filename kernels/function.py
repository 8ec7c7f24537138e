"""The autograd Function of the loss on logits; backward is elementwise and silent."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .layout import Logits, Target, row_views
from .passes import Context, begin, finish, weighted_sum


class DistillationLoss(torch.autograd.Function):
    """Both objectives per token, [N], and the metrics stacked [M, N].

    Collectives: one all-gather forward (two with jsd, skew or tvd terms), none backward.
    Saved: both logit tensors as they came, the labels, and 8 numbers a token plus 3 for each two-pass term.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor | None, labels: Tensor, context: Context
    ) -> tuple[Tensor, Tensor, Tensor]:
        """student, teacher [..., V_local]; labels [N], N the product of the leading dimensions."""
        spec = context.spec
        values = finish(begin(student, teacher, labels, context), context)
        dtype = values.scalars.dtype
        student_loss = weighted_sum(spec.student, "student", values).to(dtype)
        teacher_loss = weighted_sum(spec.teacher, "teacher", values).to(dtype)
        stacked = torch.stack(list(values.metrics.values())).to(dtype)
        ctx.save_for_backward(student, teacher, labels, values.scalars)
        ctx.context = context
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*([stacked] if spec.trains_teacher else [stacked, teacher_loss]))
        return student_loss, teacher_loss, stacked

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, student_upstream: Tensor | None, teacher_upstream: Tensor | None, _: None
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Elementwise from the logits and the saved scalars; the result is this shard's gradient, not a partial sum."""
        student, teacher, labels, scalars = ctx.saved_tensors
        spec, backend = ctx.context.spec, ctx.context.backend
        student_grad = _gradient_like(student, ctx.needs_input_grad[0], student_upstream)
        teacher_grad = _gradient_like(teacher, ctx.needs_input_grad[1], teacher_upstream)
        upstreams = {"student": student_upstream, "teacher": teacher_upstream}
        for rows, (s, t, *outs) in row_views(student, teacher, student_grad, teacher_grad):
            assert s is not None
            targets = {
                name: Target(upstream[rows], out)
                for (name, upstream), out in zip(upstreams.items(), outs, strict=True)
                if upstream is not None and out is not None
            }
            backend.gradients(Logits(s, t, labels[rows]), scalars[:, rows], spec, targets)
        return student_grad, teacher_grad, None, None


def _gradient_like(logits: Tensor | None, needed: bool, upstream: Tensor | None) -> Tensor | None:
    if logits is None or not needed or upstream is None:
        return None
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
