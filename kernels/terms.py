"""What a distillation objective is made of: named terms with weights.

Notation used throughout this folder: ``p`` is the teacher's distribution, ``q`` the student's, both at the temperature
tau; ``m`` is a mixture of the two. A divergence is multiplied by tau^2 (Hinton et al., arXiv 1503.02531) so that the
size of its gradient does not depend on tau; cross-entropy is always taken at tau = 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

CROSS_ENTROPY = "ce"
ONE_PASS = ("forward_kl", "reverse_kl")
TOP = "forward_kl_top"
TWO_PASS = ("jsd", "skew_forward_kl", "skew_reverse_kl", "tvd", TOP)
KINDS = (CROSS_ENTROPY, *ONE_PASS, *TWO_PASS)

DEFAULT_BETA = 0.5
DEFAULT_ALPHA = 0.1
DEFAULT_TOP = 50


@dataclass(frozen=True)
class Term:
    """One weighted term of an objective.

    kind    "ce", "forward_kl" KL(p || q), "reverse_kl" KL(q || p), "jsd", "skew_forward_kl", "skew_reverse_kl", "tvd",
            "forward_kl_top"
    weight  >= 0; 0 reports the term among the metrics without minimising it
    beta    jsd only: beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q
    alpha   skew terms only: KL(p || alpha p + (1 - alpha) q), and KL(q || alpha q + (1 - alpha) p) for the reverse
            (DistiLLM, arXiv 2402.03898)
    top     forward_kl_top only: KL(p' || q'), where p' and q' keep the teacher's `top` likeliest tokens and put the
            mass of all others on one more, the ghost token

    Raises ValueError for an unknown kind, a weight that is negative or not finite, beta or alpha outside (0, 1), a top
    below 1.
    """

    kind: str
    weight: float
    beta: float = DEFAULT_BETA
    alpha: float = DEFAULT_ALPHA
    top: int = DEFAULT_TOP

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown term {self.kind!r}; the terms are {', '.join(KINDS)}")
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"the weight of {self.kind!r} is {self.weight}; it must be finite and not negative")
        for name, value in (("beta", self.beta), ("alpha", self.alpha)):
            if not 0 < value < 1:
                raise ValueError(
                    f"{name} of {self.kind!r} is {value}; it must lie strictly between 0 and 1"
                    " (at the ends jsd is 0 and the skew terms are forward_kl and reverse_kl)"
                )
        if self.top != int(self.top) or self.top < 1:
            raise ValueError(f"top of {self.kind!r} is {self.top}; it must be a number of tokens, at least 1")

    @property
    def parameter(self) -> float:
        """The one option that this kind reads, 0.0 for a kind that has none."""
        if self.kind == "jsd":
            return self.beta
        if self.kind == TOP:
            return float(self.top)
        return self.alpha if self.kind.startswith("skew") else 0.0

    @property
    def name(self) -> str:
        """Key of the term among the metrics: its kind, with the option where that is not the default."""
        default = {
            "jsd": DEFAULT_BETA,
            "skew_forward_kl": DEFAULT_ALPHA,
            "skew_reverse_kl": DEFAULT_ALPHA,
            TOP: DEFAULT_TOP,
        }
        option = self.parameter
        return self.kind if option == default.get(self.kind, 0.0) else f"{self.kind}({option:g})"


Objective = Mapping[str, float] | Sequence[Term] | None


def parse_objective(objective: Objective, whose: str) -> tuple[Term, ...]:
    """The terms of an objective, equal ones added up, in the order given.

    objective  {kind: weight}, a sequence of Term, or None and empty for no objective
    whose      "student" or "teacher", for the error message
    """
    if not objective:
        return ()
    if isinstance(objective, Mapping):
        terms = [Term(kind, float(weight)) for kind, weight in objective.items()]
    elif isinstance(objective, Sequence) and all(isinstance(term, Term) for term in objective):
        terms = list(objective)
    else:
        raise ValueError(f"the {whose} objective must be a mapping of weights or a sequence of Term, not {objective!r}")
    merged: dict[tuple[str, float], Term] = {}
    for term in terms:
        key = (term.kind, term.parameter)
        weight = term.weight + (merged[key].weight if key in merged else 0.0)
        merged[key] = replace(term, weight=weight)
    return tuple(merged.values())
