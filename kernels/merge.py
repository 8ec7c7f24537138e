"""Joins what every rank knows about its columns into what is true of the whole vocabulary; fp64, no collective.

Vocabulary shards, and parts of one shard that were summed apart, are joined by the same formulas (README.md, "Merge").
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .spec import NUM_MIXTURE_SUMS, LossSpec, Stat


@dataclass
class Merged:
    """Per-token values [N], fp64.

    scalars  rows of `spec.Scalar`
    metrics  by name, without the tau^2 of divergences
    """

    scalars: list[Tensor]
    metrics: dict[str, Tensor]


@dataclass
class _Side:
    top: Tensor
    shift: Tensor  # [R, N]: this shard's maximum minus the global one, / tau
    scale: Tensor  # [R, N]: exp(shift)
    total: Tensor
    log_total: Tensor
    log_total_1: Tensor
    entropy: Tensor
    ce: Tensor
    argmax: Tensor


def _merge_side(stats: Tensor, first: Stat, temperature: float) -> _Side:
    """stats [R, K, N] fp64; first is the side's MAX row."""
    maximum, total, total_1, label, argmax, entropy = stats[:, first : first + 6].unbind(1)
    top = maximum.amax(0)
    # A shard without a finite logit has MAX = -inf and sums of 0: any finite shift will do.
    raw_shift = torch.where(maximum == -math.inf, 0.0, maximum - top)
    shift = raw_shift / temperature
    scale = shift.exp()
    sum_ = (total * scale).sum(0)
    log_total_1 = (total_1 * raw_shift.exp()).sum(0).log()
    winner = torch.where(maximum == top, argmax, math.inf).amin(0)
    return _Side(
        top=top,
        shift=shift,
        scale=scale,
        total=sum_,
        log_total=sum_.log(),
        log_total_1=log_total_1,
        entropy=sum_.log() - ((entropy + total * shift) * scale).sum(0) / sum_,
        ce=top + log_total_1 - label.sum(0),
        argmax=winner,
    )


def merge_statistics(stats: Tensor, spec: LossSpec) -> Merged:
    """Global normalisers, one-pass divergences and metrics from the statistics of all shards.

    stats  [R, K, N], any float dtype; R shards (or parts), K rows of `spec.Stat`
    """
    stats = stats.double()
    student = _merge_side(stats, Stat.STUDENT_MAX, spec.temperature)
    scalars = [student.top, student.log_total, student.log_total_1]
    metrics = {"student_ce": student.ce, "student_entropy": student.entropy}
    if not spec.has_teacher:
        return Merged(scalars, metrics)
    teacher = _merge_side(stats, Stat.TEACHER_MAX, spec.temperature)
    shift = teacher.shift - student.shift
    forward = ((stats[:, Stat.FORWARD] + stats[:, Stat.TEACHER_SUM] * shift) * teacher.scale).sum(0)
    reverse = ((stats[:, Stat.REVERSE] - stats[:, Stat.STUDENT_SUM] * shift) * student.scale).sum(0)
    forward_kl = forward / teacher.total - teacher.log_total + student.log_total
    reverse_kl = reverse / student.total - student.log_total + teacher.log_total
    scalars += [teacher.top, teacher.log_total, teacher.log_total_1, forward_kl, reverse_kl]
    metrics |= {
        "teacher_ce": teacher.ce,
        "teacher_entropy": teacher.entropy,
        "top1_agreement": (teacher.argmax == student.argmax).to(stats.dtype),
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
    }
    return Merged(scalars, metrics)


def merge_mixtures(sums: Tensor, spec: LossSpec) -> Merged:
    """Values of the two-pass terms from the sums of all shards, [R, 3 * mixtures, N]."""
    total = sums.double().sum(0)
    metrics = {}
    for index, mixture in enumerate(spec.mixtures):
        first, second = total[NUM_MIXTURE_SUMS * index], total[NUM_MIXTURE_SUMS * index + 1]
        beta = mixture.parameter
        value = {"tvd": 0.5 * first, "jsd": beta * first + (1 - beta) * second}.get(mixture.kind, first)
        metrics[mixture.name] = value
    return Merged(list(total), metrics)
