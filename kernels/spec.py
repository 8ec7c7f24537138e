"""What a call of the loss is besides tensors, and the layout of the per-token numbers that it passes around."""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from .terms import CROSS_ENTROPY, ONE_PASS, TOP, TWO_PASS, Term


class Stat(IntEnum):
    """Rows of the local statistics ``[len, N]``: what one rank knows about a token after one pass over its columns.

    MAX is the largest raw logit, c = (logit - MAX) / tau. The teacher's rows are absent without a teacher.
    """

    STUDENT_MAX = 0
    STUDENT_SUM = 1  # sum exp(c)
    STUDENT_SUM_1 = 2  # the same at tau = 1
    STUDENT_LABEL = 3  # the raw logit of the label, 0 where another rank owns it
    STUDENT_ARGMAX = 4  # global id
    STUDENT_ENTROPY = 5  # sum exp(c) c
    TEACHER_MAX = 6
    TEACHER_SUM = 7
    TEACHER_SUM_1 = 8
    TEACHER_LABEL = 9
    TEACHER_ARGMAX = 10
    TEACHER_ENTROPY = 11
    FORWARD = 12  # sum exp(c_teacher) (c_teacher - c_student)
    REVERSE = 13  # sum exp(c_student) (c_student - c_teacher)


NUM_STUDENT_STATS = 6
NUM_STATS = len(Stat)


class Scalar(IntEnum):
    """Rows of the scalars ``[len, N]`` that backward needs, equal on all ranks.

    Two more rows follow for each k of `LossSpec.tops`, see ``top.thresholds``, and three for each mixture, see
    ``formulas.mixture_sums``.
    """

    STUDENT_MAX = 0
    STUDENT_LOG_SUM = 1
    STUDENT_LOG_SUM_1 = 2
    TEACHER_MAX = 3
    TEACHER_LOG_SUM = 4
    TEACHER_LOG_SUM_1 = 5
    FORWARD_KL = 6
    REVERSE_KL = 7


NUM_STUDENT_SCALARS = 3
NUM_SCALARS = len(Scalar)
NUM_MIXTURE_SUMS = 3
NUM_THRESHOLDS = 2


@dataclass(frozen=True)
class Mixture:
    """A term that needs both normalisers first: its kind and its beta, alpha or top."""

    kind: str
    parameter: float
    name: str


def distinct_mixtures(student: tuple[Term, ...], teacher: tuple[Term, ...]) -> tuple[Mixture, ...]:
    """The distinct two-pass terms of two objectives."""
    terms = [term for term in (*student, *teacher) if term.kind in TWO_PASS]
    return tuple({Mixture(term.kind, term.parameter, term.name): None for term in terms})


def metric_names(student: tuple[Term, ...], teacher: tuple[Term, ...], *, has_teacher: bool) -> tuple[str, ...]:
    """Names of the metrics of two objectives, in the order in which they are computed."""
    own = ("student_ce", "student_entropy")
    if not has_teacher:
        return own
    mixtures = (mixture.name for mixture in distinct_mixtures(student, teacher))
    return (*own, "teacher_ce", "teacher_entropy", "top1_agreement", *ONE_PASS, *mixtures)


@dataclass(frozen=True)
class LossSpec:
    """The objective of both sides, the temperature, and which columns of the logits are tokens.

    first        global id of this shard's first column
    num_columns  columns of this shard that are tokens; those to the right of them are padding
    vocab_size   tokens of the whole vocabulary
    """

    student: tuple[Term, ...]
    teacher: tuple[Term, ...]
    temperature: float
    first: int
    num_columns: int
    vocab_size: int
    has_teacher: bool

    @property
    def num_stats(self) -> int:
        """Rows of the local statistics."""
        return NUM_STATS if self.has_teacher else NUM_STUDENT_STATS

    @property
    def num_scalars(self) -> int:
        """Rows of the saved scalars."""
        of_terms = NUM_THRESHOLDS * len(self.tops) + NUM_MIXTURE_SUMS * len(self.mixtures)
        return of_terms + (NUM_SCALARS if self.has_teacher else NUM_STUDENT_SCALARS)

    @cached_property
    def mixtures(self) -> tuple[Mixture, ...]:
        """The distinct two-pass terms of both objectives."""
        return distinct_mixtures(self.student, self.teacher)

    @cached_property
    def tops(self) -> tuple[int, ...]:
        """The distinct k of the terms that keep the teacher's k likeliest tokens."""
        return tuple({int(mixture.parameter): None for mixture in self.mixtures if mixture.kind == TOP})

    @property
    def num_candidates(self) -> int:
        """How many of its columns a rank proposes for the likeliest of all."""
        return min(max(self.tops, default=0), self.vocab_size)

    def threshold_row(self, top: int) -> int:
        """First of the two rows of the scalars that tell the teacher's `top` likeliest tokens from the others."""
        return NUM_SCALARS + NUM_THRESHOLDS * self.tops.index(top)

    @cached_property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics, in the order in which they are computed."""
        return metric_names(self.student, self.teacher, has_teacher=self.has_teacher)

    @cached_property
    def trains_teacher(self) -> bool:
        """Whether any teacher term has a weight."""
        return any(term.weight for term in self.teacher)

    def scalar_row(self, term: Term) -> int:
        """First row of the scalars that belongs to a mixture term."""
        keys = [(mixture.kind, mixture.parameter) for mixture in self.mixtures]
        first = NUM_SCALARS + NUM_THRESHOLDS * len(self.tops)
        return first + NUM_MIXTURE_SUMS * keys.index((term.kind, term.parameter))


def metric_of(term: Term, side: str) -> str:
    """Name of the metric that holds a term's value; cross-entropy is the only one that has two."""
    return f"{side}_ce" if term.kind == CROSS_ENTROPY else term.name
