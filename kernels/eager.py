"""Backend "eager": plain torch operations over a few rows at a time, on any device.

Temporaries are a bounded number of small blocks (`CPU_BLOCK` keeps them in a core's cache), so nothing of the size of
the logits is ever allocated besides the gradients that are asked for. Rows without a label are never read.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from . import formulas
from .layout import Logits, compute_dtype
from .spec import NUM_MIXTURE_SUMS, LossSpec, Scalar, Stat
from .terms import CROSS_ENTROPY, Term

CPU_BLOCK = 1 << 17  # elements of a block: 512 KiB of fp32, so that the handful in flight stay in cache
GPU_BLOCK = 1 << 24

Rows = slice | Tensor


def _blocks(logits: Logits, spec: LossSpec) -> Iterator[Rows]:
    """Row indices of labelled tokens, as many at a time as fit a block; slices where nothing is skipped."""
    size = CPU_BLOCK if logits.labels.device.type == "cpu" else GPU_BLOCK
    step = max(1, size // max(1, spec.num_columns))
    active = logits.labels != -100
    if bool(active.all()):
        for start in range(0, len(active), step):
            yield slice(start, min(start + step, len(active)))
    else:
        yield from active.nonzero().squeeze(1).split(step)


def _load(x: Tensor, rows: Rows, spec: LossSpec, dtype: torch.dtype) -> Tensor:
    return x[:, : spec.num_columns][rows].to(dtype)


def statistics(logits: Logits, spec: LossSpec) -> Tensor:
    """`spec.Stat` of this shard, [K, n]; rows without a label and shards without columns hold MAX = -inf, sums of 0."""
    dtype = compute_dtype(logits)
    out = torch.zeros(spec.num_stats, len(logits.labels), dtype=dtype, device=logits.labels.device)
    sides = [Stat.STUDENT_MAX] if logits.teacher is None else [Stat.STUDENT_MAX, Stat.TEACHER_MAX]
    out[sides] = -torch.inf
    if spec.num_columns == 0:
        return out
    for rows in _blocks(logits, spec):
        student = _load(logits.student, rows, spec, dtype)
        teacher = None if logits.teacher is None else _load(logits.teacher, rows, spec, dtype)
        local_label = logits.labels[rows] - spec.first
        out[:, rows] = torch.stack(formulas.block_statistics(student, teacher, local_label, spec.temperature))
    out[[side + Stat.STUDENT_ARGMAX for side in sides]] += spec.first
    return out


def _log_probabilities(x: Tensor, scalars: Tensor, first: Scalar, temperature: float) -> Tensor:
    """Centred first, normalised second: at logits of 1e4 a stored lse would lose three digits."""
    top, log_total = scalars[first].unsqueeze(1), scalars[first + 1].unsqueeze(1)
    return (x - top) / temperature - log_total


def mixtures(logits: Logits, scalars: Tensor, spec: LossSpec) -> Tensor:
    """`formulas.mixture_sums` of this shard for every mixture of the objective, [3 * mixtures, n]."""
    dtype = compute_dtype(logits)
    assert logits.teacher is not None
    out = torch.zeros(NUM_MIXTURE_SUMS * len(spec.mixtures), len(logits.labels), dtype=dtype, device=scalars.device)
    if spec.num_columns == 0:
        return out
    for rows in _blocks(logits, spec):
        row_scalars = scalars[:, rows]
        log_q = _log_probabilities(
            _load(logits.student, rows, spec, dtype), row_scalars, Scalar.STUDENT_MAX, spec.temperature
        )
        log_p = _log_probabilities(
            _load(logits.teacher, rows, spec, dtype), row_scalars, Scalar.TEACHER_MAX, spec.temperature
        )
        sums = [formulas.mixture_sums(log_p, log_q, mixture) for mixture in spec.mixtures]
        out[:, rows] = torch.stack([row for three in sums for row in three])
    return out


def _side_gradient(
    side: str, own: Tensor, other: Tensor | None, scalars: Tensor, local_label: Tensor, spec: LossSpec
) -> Tensor:
    """Gradient [n, v] of one side's objective with respect to its own raw logits."""
    terms = spec.student if side == "student" else spec.teacher
    mine, theirs = Scalar.STUDENT_MAX, Scalar.TEACHER_MAX
    if side == "teacher":
        mine, theirs = theirs, mine
    gradient = torch.zeros_like(own)
    for term in terms:
        if term.weight and term.kind == CROSS_ENTROPY:
            gradient += term.weight * _cross_entropy_gradient(own, scalars, mine, local_label)
    divergences = [term for term in terms if term.weight and term.kind != CROSS_ENTROPY]
    if not divergences:
        return gradient
    assert other is not None
    log_x = _log_probabilities(own, scalars, mine, spec.temperature)
    log_y = _log_probabilities(other, scalars, theirs, spec.temperature)
    for term in divergences:
        kind, parameter = formulas.own_view(term, side)
        value = scalars[Scalar.FORWARD_KL if side == "teacher" else Scalar.REVERSE_KL].unsqueeze(1)
        sums = _own_sums(term, side, scalars, spec)
        # tau^2 of the term times 1 / tau of the chain rule
        gradient += (
            term.weight * spec.temperature * formulas.divergence_gradient(kind, parameter, log_x, log_y, value, sums)
        )
    return gradient


def _cross_entropy_gradient(own: Tensor, scalars: Tensor, first: Scalar, local_label: Tensor) -> Tensor:
    top, log_total_1 = scalars[first].unsqueeze(1), scalars[first + 2].unsqueeze(1)
    gradient = (own - top - log_total_1).exp()
    owned = (local_label >= 0) & (local_label < own.shape[1])
    column = local_label.clamp(0, own.shape[1] - 1).unsqueeze(1)
    return gradient.scatter_add_(1, column, -owned.to(own.dtype).unsqueeze(1))


def _own_sums(term: Term, side: str, scalars: Tensor, spec: LossSpec) -> list[Tensor]:
    """The saved `mixture_sums` of a term, each [n, 1], the side's own first."""
    if (term.kind, term.parameter) not in {(mixture.kind, mixture.parameter) for mixture in spec.mixtures}:
        return []
    row = spec.scalar_row(term)
    first, second, third = scalars[row : row + NUM_MIXTURE_SUMS].unsqueeze(2)
    if side == "student" and term.kind == "jsd":
        return [second, first, third]
    if side == "student" and term.kind == "tvd":
        return [first, third, second]
    return [first, second, third]


def gradients(
    logits: Logits,
    scalars: Tensor,
    spec: LossSpec,
    student_upstream: Tensor | None,
    teacher_upstream: Tensor | None,
    student_out: Tensor | None,
    teacher_out: Tensor | None,
) -> None:
    """Writes both gradients, upstream [n] times the derivative of the objective; a side whose out is None is left out.

    student_out, teacher_out  [n, V_local], may be the logits themselves; padding and rows without a label get 0
    """
    dtype = compute_dtype(logits)
    sides = [
        ("student", student_upstream, student_out),
        ("teacher", teacher_upstream, teacher_out),
    ]
    for _, _, out in sides:
        if out is not None:
            out[:, spec.num_columns :] = 0
            out[logits.labels == -100] = 0
    if spec.num_columns == 0:
        return
    for rows in _blocks(logits, spec):
        student = _load(logits.student, rows, spec, dtype)
        teacher = None if logits.teacher is None else _load(logits.teacher, rows, spec, dtype)
        local_label = logits.labels[rows] - spec.first
        finished = []  # both are computed before either is written: an out may be the logits themselves
        for side, upstream, out in sides:
            if out is None or upstream is None:
                continue
            own, other = (student, teacher) if side == "student" else (teacher, student)
            assert own is not None
            gradient = _side_gradient(side, own, other, scalars[:, rows], local_label, spec)
            finished.append((out, gradient * upstream[rows].to(dtype).unsqueeze(1)))
        for out, gradient in finished:
            out[rows, : spec.num_columns] = gradient.to(out.dtype)
