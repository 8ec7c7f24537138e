"""The objective of both models, from hidden states to one scalar whose backward gives both gradients.

    student:         L_s = ce_s CE(q, y) + sum_k a_k D_k(sg[p], q)
    online modules:  L_t = ce_t CE(p, y) + sum_k b_k D_k(p, sg[q])

The stop-gradients live in the kernel: the student's loss has a gradient for the student's logits alone, the teacher's
for the teacher's alone, so adding the two before backward mixes nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch

from megaokd import config
from megaokd.data.batches import IGNORE
from megaokd.errors import UserError
from megaokd.kernels import DistillationOutput, Term, distillation_loss, linear_distillation_loss, metric_names
from megaokd.kernels.backends import select_backend
from megaokd.models.decoder import Decoder
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabParallelHead, VocabRange
from megaokd.precision import Precision, autocast


@dataclass(frozen=True)
class Terms:
    """The weighted terms of both objectives in the form that the kernel takes."""

    student: tuple[Term, ...]
    teacher: tuple[Term, ...]
    temperature: float

    @classmethod
    def from_config(cls, objective: config.Objective, *, has_teacher: bool, online: bool) -> "Terms":
        """Without a teacher only the student's cross-entropy is left; without online modules the teacher is frozen."""
        student = {kind: weight for kind, weight in objective.student.items() if has_teacher or kind == "ce"}
        teacher = objective.teacher if online else {}
        if not any(student.values()):
            missing = "a weight above 0" if has_teacher else "ce above 0: without a teacher there is no divergence"
            raise UserError(
                f"objective.student={objective.student} leaves the student nothing to learn; give {missing}"
            )
        return cls(_terms(student, objective), _terms(teacher, objective), objective.temperature)


def _terms(weights: config.Weights, objective: config.Objective) -> tuple[Term, ...]:
    return tuple(
        Term(kind, weight, beta=objective.jsd_beta) if kind == "jsd" else Term(kind, weight)
        for kind, weight in weights.items()
        if weight > 0.0
    )


def check_backend(backend: str, device: torch.device) -> None:
    """A user's mistake where the kernels of that name cannot run on the device, told before anything is built."""
    try:
        select_backend(backend, device, 0, 0)
    except RuntimeError as error:
        raise UserError(f"objective.backend: {error}") from error


class HiddenStateLoss:
    """The pipeline's loss function: (hidden states, labels) -> scalar, on the last stage.

    Heads are applied to loss tokens only. `slots` holds the decoders whose heads the hidden states belong to, the
    student's first; it is empty on ranks without the last stage. Sums of every metric over loss tokens gather in
    `sums` until `take_sums`.

    `fused` computes heads and loss together in chunks of tokens, so that the logits of a micro-batch never exist whole.

    Collectives of one call: with sequence parallelism one all-gather of [B, S/tp, D] a model; then for each chunk (all
    tokens at once where not fused) the kernel's all-gather, two with jsd, and an all-reduce of [chunk, D] a model that
    has a gradient; these come in backward where not fused.
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
        return ("tokens", "student_loss", "teacher_loss", *measured)

    def __call__(self, hidden: tuple[torch.Tensor, ...], labels: torch.Tensor, *, scale: float) -> torch.Tensor:
        """hidden: one [B, S or S/tp, D] a slot; labels [B, S]; scale: what a token's loss is multiplied by."""
        assert len(hidden) == len(self.slots), "the loss runs on the last stage"
        keep = labels != IGNORE
        rows = [self.tp.gather_sequence(state)[keep] for state in hidden]
        with autocast(self.precision, labels.device):
            out = self._fused(rows, labels[keep]) if self.fused else self._on_logits(rows, labels[keep])
        self._add("student_loss", out.student_loss)
        self._add("teacher_loss", out.teacher_loss)
        for name, values in out.metrics.items():
            self._add(name, values)
        self._add("tokens", keep)
        total: torch.Tensor = (out.student_loss.sum() + out.teacher_loss.sum()) * scale
        return total

    def take_sums(self) -> dict[str, torch.Tensor]:
        """The sums since the last call, fp64 scalars on the device; empty on stages that saw no loss."""
        sums, self.sums = self.sums, {}
        return sums

    def _fused(self, rows: list[torch.Tensor], labels: torch.Tensor) -> DistillationOutput:
        """Heads and loss together, a chunk of tokens at a time."""
        weights = [_head(model).weight for model in self.slots]
        hidden, weight = (rows[1], weights[1]) if len(rows) > 1 else (None, None)
        return linear_distillation_loss(rows[0], weights[0], hidden, weight, labels, **self._options())

    def _on_logits(self, rows: list[torch.Tensor], labels: torch.Tensor) -> DistillationOutput:
        """All logits of the micro-batch, then the loss."""
        logits = [_head(model)(state) for model, state in zip(self.slots, rows, strict=True)]
        return distillation_loss(logits[0], logits[1] if len(logits) > 1 else None, labels, **self._options())

    def _options(self) -> dict[str, Any]:
        return {
            "student": self.terms.student,
            "teacher": self.terms.teacher,
            "temperature": self.terms.temperature,
            "group": self.tp.group,
            "vocab_start": self.vocab.start,
            "vocab_size": self.vocab.size,
            "backend": self.backend,
        }

    def _add(self, name: str, values: torch.Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0) + values.detach().sum(dtype=torch.float64)


def _head(model: Decoder) -> VocabParallelHead:
    assert model.head is not None
    return model.head
