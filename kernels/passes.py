"""What both forms of the loss do with a set of logits: first pass and all-gather, merge, gradients.

Begun and finished apart, so that a caller can do other work while the all-gather is on its way.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from .backends import Backend
from .collectives import PendingGather, gather_ranks, start_gather
from .layout import Logits, row_views
from .merge import merge_mixtures, merge_statistics
from .spec import LossSpec, metric_of
from .terms import Term
from .top import candidates, thresholds

Part = tuple[slice, Logits]


@dataclass(frozen=True)
class Context:
    """The options that every pass of a call needs."""

    spec: LossSpec
    group: dist.ProcessGroup | None
    backend: Backend


@dataclass
class FirstPass:
    """Logits whose statistics are on their way to the other ranks."""

    parts: list[Part]
    labels: Tensor
    pending: PendingGather


@dataclass
class TokenValues:
    """Scalars for backward [K, N] in the computing dtype; every metric [N] in fp64, 0 where ignored."""

    scalars: Tensor
    metrics: dict[str, Tensor]


def as_parts(student: Tensor, teacher: Tensor | None, labels: Tensor) -> list[Part]:
    """Logits [..., V_local] as matrices of rows; labels [N]."""
    parts = []
    for rows, (student_rows, teacher_rows) in row_views(student, teacher):
        assert student_rows is not None
        parts.append((rows, Logits(student_rows, teacher_rows, labels[rows])))
    return parts


def begin(student: Tensor, teacher: Tensor | None, labels: Tensor, context: Context) -> FirstPass:
    """One pass over this shard's columns; starts the all-gather of its statistics and of its likeliest tokens."""
    parts = as_parts(student, teacher, labels)
    local = torch.cat([context.backend.statistics(logits, context.spec) for _, logits in parts], dim=1)
    if context.spec.tops:
        local = torch.cat([local, torch.cat([candidates(logits, context.spec) for _, logits in parts], dim=1)])
    return FirstPass(parts, labels, start_gather(local, context.group))


def finish(first: FirstPass, context: Context) -> TokenValues:
    """Waits for the all-gather and merges; a second pass and a second all-gather where two-pass terms ask for them."""
    spec = context.spec
    stats = first.pending.wait()
    merged = merge_statistics(stats[:, : spec.num_stats], spec)
    scalars = torch.stack(merged.scalars).to(stats.dtype)
    if spec.tops:
        scalars = torch.cat([scalars, thresholds(stats[:, spec.num_stats :], spec)])
    metrics = merged.metrics
    if spec.mixtures:
        passes = [context.backend.mixtures(logits, scalars[:, rows], spec) for rows, logits in first.parts]
        mixed = merge_mixtures(gather_ranks(torch.cat(passes, dim=1), context.group), spec)
        scalars = torch.cat([scalars, torch.stack(mixed.scalars).to(stats.dtype)])
        metrics = metrics | mixed.metrics
    return TokenValues(scalars, _finished(metrics, first.labels, spec))


def _finished(metrics: dict[str, Tensor], labels: Tensor, spec: LossSpec) -> dict[str, Tensor]:
    """Divergences times tau^2, ignored tokens 0, labels that do not exist NaN (on the CPU `checks` has found them)."""
    ignored = labels == -100
    unknown = (labels < 0) | (labels >= spec.vocab_size)
    finished = {}
    for name in spec.metric_names:
        value = metrics[name]
        if not name.startswith(("student_", "teacher_", "top1_")):
            value = value * spec.temperature**2
        finished[name] = value.masked_fill(unknown, torch.nan).masked_fill(ignored, 0.0)
    return finished


def weighted_sum(terms: tuple[Term, ...], side: str, values: TokenValues) -> Tensor:
    """The objective of one side, [N] fp64; a term of weight 0 is not touched, so that its infinity stays its own."""
    total = torch.zeros_like(values.metrics["student_ce"])
    for term in terms:
        if term.weight:
            total = total + term.weight * values.metrics[metric_of(term, side)]
    return total
