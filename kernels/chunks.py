"""Walks over chunks of tokens with both heads: logits, values, gradients.

Under tensor parallelism the logits of the next chunk are computed while the all-gather of this one is on its way, and
each chunk's hidden gradient is summed over the ranks while the next chunk is computed.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch.distributed as dist
from torch import Tensor

from .collectives import group_size
from .head import Head, HeadGradients
from .layout import Logits, Target
from .passes import Context, FirstPass, TokenValues, begin, finish


@dataclass(frozen=True)
class Wanted:
    """Which gradients somebody will ask for."""

    student_hidden: bool
    student_weight: bool
    student_bias: bool
    teacher_hidden: bool

    @property
    def student(self) -> bool:
        """Any of the student's."""
        return self.student_hidden or self.student_weight or self.student_bias


@dataclass
class ChunkedHeads:
    """Both heads, the labels [T], and the gradients as far as they are known."""

    student: Head
    teacher: Head | None
    labels: Tensor
    chunk: int
    context: Context
    buffers: list[tuple[Tensor, Tensor | None]]
    student_gradients: HeadGradients
    teacher_gradients: HeadGradients
    reductions: list[dist.Work] = field(default_factory=list)

    @classmethod
    def create(
        cls, student: Head, teacher: Head | None, labels: Tensor, chunk: int, context: Context, wanted: Wanted
    ) -> "ChunkedHeads":
        """Allocates the gradients that are wanted, and logits of one chunk or, where there is a group, of two."""
        none = HeadGradients(None, None, None)
        slots = min(2, group_size(context.group))
        buffers = [
            (student.new_logits(chunk), None if teacher is None else teacher.new_logits(chunk)) for _ in range(slots)
        ]
        return cls(
            student,
            teacher,
            labels,
            chunk,
            context,
            buffers,
            student.new_gradients(wanted.student_hidden, wanted.student_weight, wanted.student_bias),
            none if teacher is None else teacher.new_gradients(wanted.teacher_hidden, weight=False, bias=False),
        )

    def chunks(self) -> list[slice]:
        """Slices of tokens, of nearly equal length."""
        total = len(self.labels)
        count = -(-total // self.chunk)
        step = -(-total // count) if count else 1
        return [slice(start, min(start + step, total)) for start in range(0, total, step)]

    def logits(self, rows: slice, slot: int = 0) -> Logits:
        """Both models' logits of a chunk, in the buffers of that slot."""
        student, teacher = self.buffers[slot]
        teacher_logits = None
        if self.teacher is not None and teacher is not None:
            teacher_logits = self.teacher.logits(rows, teacher)
        return Logits(self.student.logits(rows, student), teacher_logits, self.labels[rows])

    def values(self) -> Iterator[tuple[slice, Logits, TokenValues]]:
        """Every chunk's logits and values; with two slots a chunk is begun before the one before it is waited for."""
        begun: deque[tuple[slice, Logits, FirstPass]] = deque()
        for index, rows in enumerate(self.chunks()):
            logits = self.logits(rows, index % len(self.buffers))
            begun.append((rows, logits, begin(logits.student, logits.teacher, logits.labels, self.context)))
            if len(begun) == len(self.buffers):
                yield self._finish(*begun.popleft())
        while begun:
            yield self._finish(*begun.popleft())

    def _finish(self, rows: slice, logits: Logits, first: FirstPass) -> tuple[slice, Logits, TokenValues]:
        return rows, logits, finish(first, self.context)

    def add_gradients(
        self, rows: slice, logits: Logits, scalars: Tensor, student_upstream: Tensor, teacher_upstream: Tensor
    ) -> None:
        """Overwrites a chunk's logits with their gradients and adds those of hidden states and head; upstreams [c]."""
        targets = {}
        if any(x is not None for x in vars(self.student_gradients).values()):
            targets["student"] = Target(student_upstream, logits.student)
        if self.teacher_gradients.hidden is not None and logits.teacher is not None:
            targets["teacher"] = Target(teacher_upstream, logits.teacher)
        self.context.backend.gradients(logits, scalars, self.context.spec, targets)
        for name, head, gradients in (
            ("student", self.student, self.student_gradients),
            ("teacher", self.teacher, self.teacher_gradients),
        ):
            if head is None or name not in targets:
                continue
            head.add_gradients(rows, targets[name].out, gradients)
            if gradients.hidden is not None and group_size(self.context.group) > 1:
                work = dist.all_reduce(gradients.hidden[rows], group=self.context.group, async_op=True)
                assert work is not None
                self.reductions.append(work)

    def finished(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of the student's hidden states, weight and bias and of the teacher's hidden states."""
        for work in self.reductions:
            work.wait()
        self.reductions.clear()
        mine = self.student_gradients
        return mine.hidden, mine.weight, mine.bias, self.teacher_gradients.hidden
