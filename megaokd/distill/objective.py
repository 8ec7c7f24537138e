"""The objective of both models, from hidden states to one scalar whose backward gives both gradients.

    student:         L_s = ce_s CE(q, y) + sum_k a_k D_k(sg[p], q)
    online modules:  L_t = ce_t CE(p, y) + sum_k b_k D_k(p, sg[q]) + c KL(p || p_0)

The stop-gradients live in the kernel: the student's loss has a gradient for the student's logits alone, the teacher's
for the teacher's alone, so adding the two before backward mixes nothing.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from megaokd import config
from megaokd.data.batch import IGNORE
from megaokd.errors import UserError
from megaokd.kernels import DistillationOutput, Term, distillation_loss, linear_distillation_loss, metric_names
from megaokd.kernels.backends import select_backend
from megaokd.models.decoder import Decoder
from megaokd.parallel.kept import to_device
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabParallelHead, VocabRange
from megaokd.precision import Precision, autocast
from megaokd.terms import ANCHOR, WITH_COUNT, split_term

DRIFT_METRICS = ("teacher_drift", "original_teacher_ce")
"""KL(p_phi || p_0) and the cross-entropy of p_0."""


@dataclass(frozen=True)
class Terms:
    """The weighted terms of both objectives in the form that the kernel takes."""

    student: tuple[Term, ...]
    teacher: tuple[Term, ...]
    temperature: float
    anchor: float = 0.0
    """Weight of KL(p_phi || p_0) in the modules' loss, at temperature 1."""

    @classmethod
    def from_config(cls, objective: config.Objective, *, has_teacher: bool, online: bool) -> "Terms":
        """Without a teacher only the student's cross-entropy is left; without online modules the teacher is frozen.

        Raises:
            UserError: the student, or the modules, would have nothing to learn.
        """
        student = {name: weight for name, weight in objective.student.items() if has_teacher or name == "ce"}
        if not any(student.values()):
            missing = "a weight above 0" if has_teacher else "ce above 0: without a teacher there is no divergence"
            raise UserError(
                f"objective.student={objective.student} leaves the student nothing to learn; give {missing}"
            )
        teacher = {name: weight for name, weight in objective.teacher.items() if name != ANCHOR} if online else {}
        if online and not any(teacher.values()):
            raise UserError(
                f"objective.teacher={objective.teacher} leaves the online modules nothing to learn (the anchor alone "
                "holds them where they begin); give a term a weight above 0, or a frozen teacher: teacher.online=null"
            )
        anchor = objective.teacher.get(ANCHOR, 0.0) if online else 0.0
        return cls(_terms(student), _terms(teacher), objective.temperature, anchor)

    def without_ce(self) -> "Terms":
        """The same with cross-entropies that are measured only."""
        return replace(self, student=_without_ce(self.student), teacher=_without_ce(self.teacher))


def _terms(weights: config.Weights) -> tuple[Term, ...]:
    return tuple(_term(name, weight) for name, weight in weights.items())


def _without_ce(terms: tuple[Term, ...]) -> tuple[Term, ...]:
    return tuple(replace(term, weight=0.0) if term.kind == "ce" else term for term in terms)


def _term(name: str, weight: float) -> Term:
    kind, option = split_term(name)
    if option is None:
        return Term(kind, weight)
    if kind in WITH_COUNT:
        return Term(kind, weight, top=int(option))
    return Term(kind, weight, beta=option) if kind == "jsd" else Term(kind, weight, alpha=option)


def check_backend(backend: str, device: torch.device, terms: Terms) -> None:
    """A user's mistake where the kernels of that name cannot run on the device, told before anything is built."""
    try:
        select_backend(backend, device, 0, 0, (*terms.student, *terms.teacher))
    except RuntimeError as error:
        raise UserError(f"objective.backend: {error}") from error


class HiddenStateLoss:
    """The pipeline's loss function: (hidden states, labels) -> scalar, on the last stage.

    Heads are applied to loss tokens only. `slots` holds the decoders whose heads the hidden states belong to, the
    student's first; it is empty on ranks without the last stage. Sums of every metric over loss tokens gather in
    `sums` until `take_sums`.

    `fused` computes heads and loss together in chunks of tokens, so that the logits of a micro-batch never exist whole.

    With an anchor a third hidden state comes along, the original teacher's; its loss is computed by a second call, with
    the two teachers in the places of student and teacher. It measures the drift and the original teacher's
    cross-entropy on the way.

    Collectives of one call: those of `Decoder.kept_tokens` for each hidden state; then for each chunk (all tokens at
    once where not fused) the kernel's all-gather, two with two-pass terms, and an all-reduce of [chunk, D] a model that
    has a gradient; these come in backward where not fused. The anchor adds a call of its own.
    """

    def __init__(
        self,
        slots: tuple[Decoder, ...],
        terms: Terms,
        vocab: VocabRange,
        tp: TensorParallel,
        precision: Precision,
        *,
        has_teacher: bool,
        fused: bool,
        backend: str = "auto",
    ) -> None:
        self.slots = slots
        self.fused = fused
        self.backend = backend
        self.has_teacher = has_teacher
        self.terms = terms
        self.vocab = vocab
        self.tp = tp
        self.precision = precision
        self.sums: dict[str, torch.Tensor] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """What `take_sums` holds, known on every rank, also where there is no loss."""
        measured = metric_names(self.terms.student, self.terms.teacher, has_teacher=self.has_teacher)
        drift = DRIFT_METRICS if self.terms.anchor else ()
        return ("tokens", "student_loss", "teacher_loss", *measured, *drift)

    @contextmanager
    def with_terms(self, terms: Terms) -> Iterator[None]:
        """Inside, other weights of the same terms."""
        before, self.terms = self.terms, terms
        try:
            yield
        finally:
            self.terms = before

    def __call__(self, hidden: tuple[torch.Tensor, ...], labels: torch.Tensor, *, scale: float) -> torch.Tensor:
        """hidden: what each slot's decoder gives; labels [B, S] in host memory; scale: of a token's loss."""
        assert len(hidden) == len(self.slots), "the loss runs on the last stage"
        keep = labels != IGNORE
        rows = [model.kept_tokens(state, keep) for model, state in zip(self.slots, hidden, strict=True)]
        device = rows[0].device
        kept_labels = to_device(labels[keep], device)
        with autocast(self.precision, device):
            out = self._distil(self.slots[:2], rows[:2], kept_labels, self.terms)
            teacher_loss = out.teacher_loss
            if self.terms.anchor:
                teacher_loss = teacher_loss + self._anchor(rows[1], rows[2], kept_labels)
        self._add("student_loss", out.student_loss)
        self._add("teacher_loss", teacher_loss)
        for name, values in out.metrics.items():
            self._add(name, values)
        self._add("tokens", torch.full((), len(kept_labels), dtype=torch.float64, device=device))
        total: torch.Tensor = (out.student_loss.sum() + teacher_loss.sum()) * scale
        return total

    def _anchor(self, adapted: torch.Tensor, original: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The weighted KL(p_phi || p_0), of the form of the kernel's losses."""
        kind = "forward_kl"  # of weight 0 it is only measured: the original teacher learns nothing
        terms = Terms((Term(kind, 0.0),), (Term(kind, self.terms.anchor),), temperature=1.0)
        out = self._distil(self.slots[1:], [original, adapted], labels, terms)
        for name, measured in zip(DRIFT_METRICS, ("forward_kl", "student_ce"), strict=True):
            self._add(name, out.metrics[measured])
        return out.teacher_loss

    def _distil(
        self, models: Sequence[Decoder], rows: list[torch.Tensor], labels: torch.Tensor, terms: Terms
    ) -> DistillationOutput:
        """Both losses of one or two models, from hidden states of loss tokens, [T, D] each, and labels [T]."""
        options: dict[str, Any] = {
            "student": terms.student,
            "teacher": terms.teacher,
            "temperature": terms.temperature,
            "group": self.tp.group,
            "vocab_start": self.vocab.start,
            "vocab_size": self.vocab.size,
            "backend": self.backend,
        }
        heads = [_head(model) for model in models]
        alone = len(rows) == 1
        if self.fused:
            hidden, weight = (None, None) if alone else (rows[1], heads[1].weight)
            return linear_distillation_loss(rows[0], heads[0].weight, hidden, weight, labels, **options)
        logits = [head(state) for head, state in zip(heads, rows, strict=True)]
        return distillation_loss(logits[0], None if alone else logits[1], labels, **options)

    def take_sums(self) -> dict[str, torch.Tensor]:
        """The sums since the last call, fp64 scalars on the device; empty on stages that saw no loss."""
        sums, self.sums = self.sums, {}
        return sums

    def _add(self, name: str, values: torch.Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0) + values.detach().sum(dtype=torch.float64)


def _head(model: Decoder) -> VocabParallelHead:
    assert model.head is not None
    return model.head
