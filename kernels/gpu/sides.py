"""One side's objective as the backward kernel takes it: what it has, known at compile time, and weights."""

import math
from typing import NamedTuple

from ..gradient import OwnTerm, label_weight, side_of
from ..spec import NUM_MIXTURE_SUMS, NUM_SCALARS, LossSpec
from ..terms import CROSS_ENTROPY


class MixedTerm(NamedTuple):
    """A two-pass term from the side of its own model: the share of own, which mixture, and the rows of its sums."""

    kind: str
    share: float
    mixture: int
    first_row: int
    second_row: int


class SideCode(NamedTuple):
    """Which parts of `backward`'s formula a side has."""

    plain: bool
    slope: bool
    pull: bool
    sharp: bool
    mixed: tuple[MixedTerm, ...]

    @property
    def needs_other(self) -> bool:
        """Whether the other model's logits matter."""
        return self.slope or self.pull or bool(self.mixed)


def mixture_code(spec: LossSpec) -> tuple[tuple[str, float, float], ...]:
    """Kind, log2 of the share of p and log2 of the share of q of each mixture; tvd has no shares."""
    codes = []
    for mixture in spec.mixtures:
        own, rest = (
            (0.0, 0.0) if mixture.kind == "tvd" else (math.log2(x) for x in (mixture.parameter, 1 - mixture.parameter))
        )
        codes.append((mixture.kind, rest, own) if mixture.kind == "skew_reverse_kl" else (mixture.kind, own, rest))
    return tuple(codes)


def _mixed_term(term: OwnTerm) -> MixedTerm:
    index = (min(term.sums) - NUM_SCALARS) // NUM_MIXTURE_SUMS
    return MixedTerm(term.kind, term.parameter, index, *term.sums)


def side_code(spec: LossSpec, name: str) -> tuple[SideCode, tuple[float, ...]]:
    """A side's code, and its weights (plain, slope, pull, sharp, label, *mixed) as `backward` documents them."""
    side, weights = side_of(spec, name)
    plain = slope = pull = sharp = 0.0
    mixed = []
    for term, weight in zip(side.terms, weights, strict=True):
        if term.kind == CROSS_ENTROPY and spec.temperature == 1.0:
            plain += weight
        elif term.kind == CROSS_ENTROPY:
            sharp += weight
        elif term.kind == "forward_kl":
            slope += weight
        elif term.kind == "reverse_kl":
            plain, pull = plain + weight, pull + weight
        else:
            mixed.append((_mixed_term(term), weight))
    code = SideCode(plain > 0, slope > 0, pull > 0, sharp > 0, tuple(term for term, _ in mixed))
    return code, (plain, slope, pull, sharp, float(label_weight(side, weights)), *(weight for _, weight in mixed))
