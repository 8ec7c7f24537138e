"""What a pipeline stage runs: a slice of the student and the same stage's slice of the teacher, side by side.

Between stages travel one to three hidden states, [B, S or S/tp, D] fp32 each: the student's (where it is split less
than the teacher, of a row group's rows), then the teacher's. Below the first online module the teacher's needs no
gradient; autograd then records nothing for it and the pipeline sends no gradient back. With an anchor the original
teacher's hidden state comes third, from the first module's stage on. With a trunk cache the teacher begins at that
stage: earlier ones have no part of it and send the student's hidden state alone.
"""

from dataclasses import dataclass

import torch
from torch import nn

from megaokd.distill.online_modules import adapted_and_original, holds_modules, original_teacher
from megaokd.models.decoder import Decoder
from megaokd.parallel.kept import to_device
from megaokd.precision import Precision, autocast

Hidden = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Slot:
    """One of the hidden states that travel between stages."""

    hidden_size: int
    grad_from_stage: int
    """The first stage whose output for this slot needs a gradient; the number of stages where none does."""
    sent_from_stage: int = 0
    """The first stage that puts it out."""
    row_groups: int = 1
    """A rank has the rows of one of so many groups."""
    sequence_parts: int = 1
    """A rank has one of so many parts of the sequence."""


class DistillationStage(nn.Module):
    """Student slice and, where this stage has one, teacher slice: (tokens) or hidden states -> hidden states.

    takes_trunk: the teacher's input is `trunk`, [B, S or S/tp, D] in the cache's dtype, and not another stage's output.
    anchored_from: the lowest teacher layer that carries online modules, if the original teacher's hidden state is
    wanted as well. It comes third, from the first stage on whose output depends on modules.
    """

    def __init__(
        self,
        student: Decoder,
        teacher: Decoder | None,
        precision: Precision,
        *,
        takes_trunk: bool = False,
        anchored_from: int | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher
        self.precision = precision
        self.takes_trunk = takes_trunk
        self.anchored_from = anchored_from

    def forward(
        self, *inputs: torch.Tensor, positions: torch.Tensor | None = None, trunk: torch.Tensor | None = None
    ) -> Hidden:
        """[B, S] token ids on the first stage, the previous stage's output elsewhere; `positions`: see `Decoder`."""
        tokens_or_student, *others = inputs
        with autocast(self.precision, tokens_or_student.device):
            student = self.student(tokens_or_student, positions)
            if self.teacher is None:
                return (student,)
            if self.takes_trunk:
                others = [_residual_stream(trunk, tokens_or_student.device)]
            adapted = others[0] if others else tokens_or_student  # tokens, for both, on the first stage
            original = others[1] if len(others) > 1 else None
            if self.anchored_from is None or not holds_modules(self.teacher.part, self.anchored_from):
                return student, self.teacher(adapted, positions)
            return student, *adapted_and_original(self.teacher, adapted, original, self.anchored_from, positions)


class DriftStage(nn.Module):
    """The original teacher in the student's place, beside the adapted one: measures how far the teacher has moved."""

    def __init__(self, teacher: Decoder | None, precision: Precision, takes_trunk: bool) -> None:
        super().__init__()
        self.teacher = teacher
        self.precision = precision
        self.takes_trunk = takes_trunk

    def forward(
        self, *inputs: torch.Tensor, positions: torch.Tensor | None = None, trunk: torch.Tensor | None = None
    ) -> Hidden:
        """As `DistillationStage.forward`, with the original teacher's hidden state first."""
        if self.teacher is None:
            return ()
        device = next(self.teacher.parameters()).device
        before = (_residual_stream(trunk, device),) if self.takes_trunk else inputs
        with autocast(self.precision, device):
            with original_teacher(self.teacher):
                original = self.teacher(before[0], positions)
            return original, self.teacher(before[-1], positions)


class TrunkStage(nn.Module):
    """The part of the teacher below the first online module that this stage holds, alone: fills a trunk cache."""

    def __init__(self, trunk: Decoder, precision: Precision) -> None:
        super().__init__()
        self.trunk = trunk
        self.precision = precision

    def forward(self, x: torch.Tensor, positions: torch.Tensor | None = None) -> Hidden:
        """[B, S] token ids on the first stage, the previous stage's output elsewhere; `positions`: see `Decoder`."""
        with autocast(self.precision, x.device):
            return (self.trunk(x, positions),)


def _residual_stream(trunk: torch.Tensor | None, device: torch.device) -> torch.Tensor:
    assert trunk is not None, "a stage that begins with a cached trunk is given one"
    return to_device(trunk, device).to(torch.float32)
