"""Joins what is known about parts of the columns into what is true of all of them; fp64, no collective.

The ranks' shards and the blocks that a backend sums apart are joined by the same formulas (README.md, "Merge").
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .spec import NUM_MIXTURE_SUMS, LossSpec, Stat
from .terms import TOP
from .top import join_top


@dataclass
class Merged:
    """Per-token values [N], fp64.

    scalars  rows of `spec.Scalar`
    metrics  by name, without the tau^2 of divergences
    """

    scalars: list[Tensor]
    metrics: dict[str, Tensor]


def _join_side(stats: Tensor, first: Stat, temperature: float) -> tuple[list[Tensor], Tensor, Tensor]:
    """One model's six rows joined; each part's shift [P, N] (its maximum minus the joint one, / tau) and its exp."""
    maximum, total, total_1, label, argmax, entropy = stats[:, first : first + 6].unbind(1)
    top = maximum.amax(0)
    # A part without a finite logit has MAX = -inf and sums of 0: any finite shift will do.
    raw_shift = torch.where(maximum == -math.inf, 0.0, maximum - top)
    shift = raw_shift / temperature
    scale = shift.exp()
    rows = [
        top,
        (total * scale).sum(0),
        (total_1 * raw_shift.exp()).sum(0),
        label.sum(0),
        torch.where(maximum == top, argmax, math.inf).amin(0),
        ((entropy + total * shift) * scale).sum(0),
    ]
    return rows, shift, scale


def join_parts(stats: Tensor, temperature: float) -> Tensor:
    """Rows of `spec.Stat`, [K, N] fp64, from those of disjoint parts of the columns, [P, K, N] of any float dtype."""
    stats = stats.double()
    rows, student_shift, student_scale = _join_side(stats, Stat.STUDENT_MAX, temperature)
    if stats.shape[1] > Stat.TEACHER_MAX:
        teacher_rows, teacher_shift, teacher_scale = _join_side(stats, Stat.TEACHER_MAX, temperature)
        shift = teacher_shift - student_shift
        forward = (stats[:, Stat.FORWARD] + stats[:, Stat.TEACHER_SUM] * shift) * teacher_scale
        reverse = (stats[:, Stat.REVERSE] - stats[:, Stat.STUDENT_SUM] * shift) * student_scale
        rows += [*teacher_rows, forward.sum(0), reverse.sum(0)]
    return torch.stack(rows)


def _side_values(stats: Tensor, first: Stat) -> tuple[list[Tensor], Tensor, Tensor]:
    """Three rows of `spec.Scalar`, cross-entropy and entropy."""
    top, total, total_1, label, _, entropy = stats[first : first + 6]
    return [top, total.log(), total_1.log()], top + total_1.log() - label, total.log() - entropy / total


def merge_statistics(stats: Tensor, spec: LossSpec) -> Merged:
    """Global normalisers, one-pass divergences and metrics from the statistics of all shards, [R, K, N]."""
    joint = join_parts(stats, spec.temperature)
    scalars, student_ce, student_entropy = _side_values(joint, Stat.STUDENT_MAX)
    metrics = {"student_ce": student_ce, "student_entropy": student_entropy}
    if not spec.has_teacher:
        return Merged(scalars, metrics)
    teacher_scalars, teacher_ce, teacher_entropy = _side_values(joint, Stat.TEACHER_MAX)
    student_log_total, teacher_log_total = scalars[1], teacher_scalars[1]
    forward_kl = joint[Stat.FORWARD] / joint[Stat.TEACHER_SUM] - teacher_log_total + student_log_total
    reverse_kl = joint[Stat.REVERSE] / joint[Stat.STUDENT_SUM] - student_log_total + teacher_log_total
    scalars += [*teacher_scalars, forward_kl, reverse_kl]
    metrics |= {
        "teacher_ce": teacher_ce,
        "teacher_entropy": teacher_entropy,
        "top1_agreement": (joint[Stat.TEACHER_ARGMAX] == joint[Stat.STUDENT_ARGMAX]).to(joint.dtype),
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
    }
    return Merged(scalars, metrics)


def merge_mixtures(sums: Tensor, spec: LossSpec) -> Merged:
    """Values of the two-pass terms from the sums of all shards, [R, 3 * mixtures, N]."""
    sums = sums.double()
    total = sums.sum(0)
    metrics = {}
    for index, mixture in enumerate(spec.mixtures):
        rows = slice(NUM_MIXTURE_SUMS * index, NUM_MIXTURE_SUMS * (index + 1))
        if mixture.kind == TOP:
            total[rows] = join_top(sums[:, rows])
        first, second, _ = total[rows]
        beta = mixture.parameter
        value = {"tvd": 0.5 * first, "jsd": beta * first + (1 - beta) * second}.get(mixture.kind, first)
        metrics[mixture.name] = value
    return Merged(list(total), metrics)
