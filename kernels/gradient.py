"""The gradient of one side's objective with respect to its own logits, for a block of columns.

Written from the side of one model, "own", against the "other": the gradient of a divergence with respect to the
student's logits is that of the mirrored divergence with respect to the teacher's, so each formula stands here once.

Legend: n tokens, v columns; x, y own and other probabilities [n, v] at tau, log_x, log_y their logs; scalars [K, n].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .formulas import log_mixture, log_probabilities, log_ratio, product
from .spec import LossSpec, Scalar
from .terms import CROSS_ENTROPY, TOP, TWO_PASS, Term
from .top import inside_top

MIRRORED_TOP = "reverse_kl_top"  # KL(other' || own'), the student's view of forward_kl_top
MIRRORED = {
    "forward_kl": "reverse_kl",
    "reverse_kl": "forward_kl",
    "skew_forward_kl": "skew_reverse_kl",
    "skew_reverse_kl": "skew_forward_kl",
}


@dataclass(frozen=True)
class OwnTerm:
    """A term as one side sees it: "forward_kl" is KL(own || other), jsd's parameter is the weight of own.

    sums       rows of the scalars that hold the side's first two `formulas.mixture_sums`, own first; () for one-pass
               terms; for the likeliest tokens and the rest: the value, the log of own rest, that of the other's
    threshold  first row of `top.thresholds`, for the same terms
    """

    kind: str
    parameter: float
    sums: tuple[int, ...]
    threshold: int = 0


@dataclass(frozen=True)
class Side:
    """What shapes one side's gradient, without the weights: compiled code is cached by it."""

    name: str
    terms: tuple[OwnTerm, ...]
    temperature: float

    @property
    def rows(self) -> tuple[Scalar, Scalar, Scalar]:
        """Rows of own MAX, of the other's MAX, and of KL(own || other)."""
        if self.name == "student":
            return Scalar.STUDENT_MAX, Scalar.TEACHER_MAX, Scalar.REVERSE_KL
        return Scalar.TEACHER_MAX, Scalar.STUDENT_MAX, Scalar.FORWARD_KL


def side_of(spec: LossSpec, name: str) -> tuple[Side, list[float]]:
    """One side's terms that have a weight, and those weights; a divergence's with tau^2 / tau of the chain rule."""
    terms = [term for term in (spec.student if name == "student" else spec.teacher) if term.weight]
    weights = [term.weight * (1.0 if term.kind == CROSS_ENTROPY else spec.temperature) for term in terms]
    return Side(name, tuple(_own_term(term, name, spec) for term in terms), spec.temperature), weights


def label_weight(side: Side, weights: Sequence[float]) -> float:
    """What the label's one-hot vector is subtracted with."""
    return sum(weight for term, weight in zip(side.terms, weights, strict=True) if term.kind == CROSS_ENTROPY)


def _own_term(term: Term, name: str, spec: LossSpec) -> OwnTerm:
    sums: tuple[int, ...] = ()
    if term.kind in TWO_PASS:
        first = spec.scalar_row(term)
        sums = (first, first + 1)
    if term.kind == TOP:
        own, other = (1, 2) if name == "teacher" else (2, 1)
        kind = TOP if name == "teacher" else MIRRORED_TOP
        sums = (first, first + own, first + other)
        return OwnTerm(kind, term.parameter, sums, spec.threshold_row(term.top))
    if name == "teacher":
        return OwnTerm(term.kind, term.parameter, sums)
    if term.kind == "jsd":
        return OwnTerm("jsd", 1 - term.parameter, sums[::-1])
    if term.kind == "tvd":
        sums = (sums[0], sums[0] + 2)
    return OwnTerm(MIRRORED.get(term.kind, term.kind), term.parameter, sums)


def side_gradient(
    side: Side, weights: Sequence[float | Tensor], own: Tensor, other: Tensor | None, scalars: Tensor
) -> Tensor:
    """Gradient [n, v] with respect to own raw logits, the label's one-hot vector left to the caller.

    own, other  raw logits [n, v] in the computing dtype; other may be None if cross-entropy is the only term
    """
    mine, theirs, kl = side.rows
    log_x = log_probabilities(own, scalars, mine, side.temperature)
    x = log_x.exp()
    log_y = y = torch.empty(0)
    if other is not None and any(term.kind != CROSS_ENTROPY for term in side.terms):
        log_y = log_probabilities(other, scalars, theirs, side.temperature)
        y = log_y.exp()
    gradient = torch.zeros_like(own)
    for term, weight in zip(side.terms, weights, strict=True):
        if term.kind == CROSS_ENTROPY and side.temperature == 1.0:
            part = x
        elif term.kind == CROSS_ENTROPY:
            part = (own - scalars[mine].unsqueeze(1) - scalars[mine + 2].unsqueeze(1)).exp()
        elif term.kind == "forward_kl":
            part = product(x, log_ratio(log_x, log_y)) - x * scalars[kl].unsqueeze(1)
        elif term.kind == "reverse_kl":
            part = x - y
        elif term.kind in (TOP, MIRRORED_TOP):
            assert other is not None
            inside = inside_top(own if side.name == "teacher" else other, scalars, term.threshold)
            part = _top_gradient(term, x, y, log_x, log_y, inside, scalars)
        else:
            first, second = (scalars[row].unsqueeze(1) for row in term.sums)
            part = _two_pass_gradient(term, x, y, log_x, log_y, first, second)
        gradient = gradient + weight * part
    return gradient


def _two_pass_gradient(
    term: OwnTerm, x: Tensor, y: Tensor, log_x: Tensor, log_y: Tensor, first: Tensor, second: Tensor
) -> Tensor:
    """Gradient [n, v] with respect to own logits / tau; first and second [n, 1] are the term's sums."""
    if term.kind == "tvd":
        return 0.5 * x * ((x - y).sign() - second)
    share = term.parameter
    if term.kind == "jsd":
        return share * (product(x, log_ratio(log_x, log_mixture(log_x, log_y, share))) - x * first)
    if term.kind == "skew_forward_kl":
        ratio = log_ratio(log_x, log_mixture(log_x, log_y, share))
        return product(x, ratio) - x * (share * ratio.exp() + first - (1 - (1 - share) * second))
    ratio = log_ratio(log_y, log_mixture(log_y, log_x, share))
    return (1 - share) * x * (second - ratio.exp())


def _top_gradient(
    term: OwnTerm, x: Tensor, y: Tensor, log_x: Tensor, log_y: Tensor, inside: Tensor, scalars: Tensor
) -> Tensor:
    """Gradient [n, v] with respect to own logits / tau; inside [n, v]: the teacher's likeliest tokens (`top`)."""
    value, own_rest, other_rest = (scalars[row].unsqueeze(1) for row in term.sums)
    if term.kind == TOP:
        ratio = torch.where(inside, log_ratio(log_x, log_y), log_ratio(own_rest, other_rest))
        return product(x, ratio) - x * value
    return x - torch.where(inside, y, (log_ratio(log_x, own_rest) + other_rest).exp())
