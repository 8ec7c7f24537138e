"""Autograd Functions of the fused form: gradients in forward, or recomputed in backward."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunks import ChunkedHeads, Wanted
from .head import Head
from .passes import Context, weighted_sum


def _teacher_head(hidden: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Head | None:
    return None if hidden is None or weight is None else Head.create(hidden, weight, bias)


def _power_of_two(token_weight: Tensor) -> Tensor:
    """A power of two near the largest weight, 1 if all are 0; 0-dimensional, never read by the host."""
    largest = token_weight.abs().amax() if len(token_weight) else token_weight.new_ones(())
    return torch.where(largest > 0, largest.log2().ceil().exp2(), 1.0)


class GradientsInForward(torch.autograd.Function):
    """Summed losses (0-dimensional) and the metrics [M, T]; the gradients are made on the way and kept.

    Collectives forward, per chunk: one all-gather (two with two-pass terms), and one all-reduce of [c, D] for each
    hidden state that wants a gradient. None backward.
    Saved: the gradients themselves. Backward scales them in place, so it runs once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_weight: Tensor,
        student_bias: Tensor | None,
        teacher_hidden: Tensor | None,
        teacher_head: tuple[Tensor | None, Tensor | None],
        labels: Tensor,
        token_weight: Tensor,
        chunk: int,
        context: Context,
        wanted: Wanted,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `linear_distillation_loss`; teacher_head is its weight and bias, token_weight [T]."""
        student = Head.create(student_hidden, student_weight, student_bias)
        teacher = _teacher_head(teacher_hidden, *teacher_head)
        heads = ChunkedHeads.create(student, teacher, labels, chunk, context, wanted)
        # fp16 would flush a gradient of 1 / tokens to zero: gradients are kept divided, exactly, by a power of two near
        # the largest weight until backward knows the upstream gradient too.
        scale = _power_of_two(token_weight)
        upstream = token_weight / scale
        spec = context.spec
        sums = torch.zeros(2, dtype=torch.float64, device=labels.device)
        metrics = torch.empty(len(spec.metric_names), len(labels), dtype=token_weight.dtype, device=labels.device)
        with torch.autocast(labels.device.type, enabled=False):
            for rows, logits, values in heads.values():
                sums[0] += (weighted_sum(spec.student, "student", values) * token_weight[rows]).sum()
                sums[1] += (weighted_sum(spec.teacher, "teacher", values) * token_weight[rows]).sum()
                metrics[:, rows] = torch.stack(list(values.metrics.values())).to(metrics.dtype)
                if wanted.student or wanted.teacher_hidden:
                    heads.add_gradients(rows, logits, values.scalars, upstream[rows], upstream[rows])
        ctx.gradients, ctx.scale = heads.finished(), scale
        ctx.dtypes = [
            None if x is None else x.dtype for x in (student_hidden, student_weight, student_bias, teacher_hidden)
        ]
        student_loss, teacher_loss = sums.to(token_weight.dtype).unbind()
        ctx.mark_non_differentiable(*([metrics] if spec.trains_teacher else [metrics, teacher_loss]))
        ctx.set_materialize_grads(False)
        return student_loss, teacher_loss, metrics

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, student_upstream: Tensor | None, teacher_upstream: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        """The kept gradients times the upstream gradient of each sum."""
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_distillation_loss can be back-propagated once: its gradients are scaled in place."
                " Call it again, or use recompute=True"
            )
        upstreams = [student_upstream, student_upstream, student_upstream, teacher_upstream]
        gradients = [
            _scaled(gradient, upstream, ctx.scale, dtype)
            for gradient, upstream, dtype in zip(ctx.gradients, upstreams, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return *gradients, *([None] * 6)


def _scaled(gradient: Tensor | None, upstream: Tensor | None, scale: Tensor, dtype: torch.dtype) -> Tensor | None:
    """In place, after widening a low-precision gradient of an input that is not: it is rounded once, not twice."""
    if gradient is None or upstream is None:
        return None
    return gradient.to(torch.promote_types(gradient.dtype, dtype)).mul_(upstream * scale)


class GradientsRecomputed(torch.autograd.Function):
    """Losses per token, [T] each, and the metrics [M, T]; backward computes the logits again, chunk by chunk.

    Collectives forward as `GradientsInForward` without the all-reduce, which comes in backward.
    Saved: hidden states, weights, labels and 8 numbers a token plus 3 for each two-pass term.
    """

    @staticmethod
    def forward(
        ctx: Any,
        student_hidden: Tensor,
        student_weight: Tensor,
        student_bias: Tensor | None,
        teacher_hidden: Tensor | None,
        teacher_head: tuple[Tensor | None, Tensor | None],
        labels: Tensor,
        chunk: int,
        context: Context,
        wanted: Wanted,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `linear_distillation_loss`."""
        nothing = Wanted(False, False, False, False)
        student = Head.create(student_hidden, student_weight, student_bias)
        teacher = _teacher_head(teacher_hidden, *teacher_head)
        heads = ChunkedHeads.create(student, teacher, labels, chunk, context, nothing)
        spec = context.spec
        dtype = torch.float64 if heads.student.weight.dtype == torch.float64 else torch.float32
        metrics = torch.empty(len(spec.metric_names), len(labels), dtype=dtype, device=labels.device)
        losses = torch.empty(2, len(labels), dtype=dtype, device=labels.device)
        scalars = torch.empty(spec.num_scalars, len(labels), dtype=dtype, device=labels.device)
        with torch.autocast(labels.device.type, enabled=False):
            for rows, _, values in heads.values():
                losses[0, rows] = weighted_sum(spec.student, "student", values).to(dtype)
                losses[1, rows] = weighted_sum(spec.teacher, "teacher", values).to(dtype)
                metrics[:, rows] = torch.stack(list(values.metrics.values())).to(dtype)
                scalars[:, rows] = values.scalars
        ctx.save_for_backward(
            student_hidden, student_weight, student_bias, teacher_hidden, *teacher_head, labels, scalars
        )
        ctx.chunk, ctx.context, ctx.wanted = chunk, context, wanted
        ctx.autocast = (
            torch.get_autocast_dtype(labels.device.type) if torch.is_autocast_enabled(labels.device.type) else None
        )
        student_loss, teacher_loss = losses.unbind()
        ctx.mark_non_differentiable(*([metrics] if spec.trains_teacher else [metrics, teacher_loss]))
        return student_loss, teacher_loss, metrics

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, student_upstream: Tensor, teacher_upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The logits once more, then as in the other form."""
        *student_inputs, teacher_hidden, teacher_weight, teacher_bias, labels, scalars = ctx.saved_tensors
        device = labels.device.type
        with torch.autocast(device, dtype=ctx.autocast, enabled=ctx.autocast is not None):
            student = Head.create(*student_inputs)
            teacher = _teacher_head(teacher_hidden, teacher_weight, teacher_bias)
        heads = ChunkedHeads.create(student, teacher, labels, ctx.chunk, ctx.context, ctx.wanted)
        with torch.autocast(device, enabled=False):
            for rows in heads.chunks():
                heads.add_gradients(
                    rows, heads.logits(rows), scalars[:, rows], student_upstream[rows], teacher_upstream[rows]
                )
        return *heads.finished(), *([None] * 5)
