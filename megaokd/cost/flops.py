"""Matrix-product FLOPs of one training step, of the whole step and not of one rank.

What tensor parallelism computes more than once (the narrow products of online modules, replicated KV heads) is counted
once. Everything that is not a matrix product is left out; what the loss has to read is given in logits.
"""

from dataclasses import dataclass

from megaokd.config import Config, OnlineModules
from megaokd.cost.layer_flops import Work, bottleneck_work, layer_work
from megaokd.distill.online_modules import first_online_layer
from megaokd.models.architecture import DecoderArchitecture
from megaokd.terms import ANCHOR


@dataclass(frozen=True)
class StepTokens:
    """What goes through the models in a step, over all ranks."""

    rows: int
    """Examples, or packed rows."""
    width: int
    """Positions of a row, padding included."""
    loss_tokens: int
    """Positions whose label carries loss: heads are applied to no others."""


@dataclass(frozen=True)
class StepMethod:
    """What the step does with the two models."""

    online: OnlineModules | None = None
    """None: the teacher is frozen altogether."""
    cached: bool = False
    """The teacher's layers below the first module are read from a trunk cache."""
    recompute: bool = False
    anchor: bool = False

    @classmethod
    def of(cls, config: Config) -> "StepMethod":
        """What a configuration asks for."""
        online = config.teacher.online if config.teacher.path is not None else None
        return cls(
            online=online,
            cached=config.teacher.cache is not None,
            recompute=config.parallel.recompute,
            anchor=online is not None and bool(config.objective.teacher.get(ANCHOR)),
        )


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of a step; both heads apart from the layers under them."""

    student: Work
    student_head: Work
    teacher: Work
    teacher_head: Work
    logits: int
    """Logits that the loss reads, of all models together."""

    @property
    def total(self) -> int:
        """Everything that is computed, recomputation included."""
        return self._sum().total

    @property
    def model_flops(self) -> int:
        """Without recomputation: what model FLOP utilisation counts."""
        work = self._sum()
        return work.forward + work.backward

    def _sum(self) -> Work:
        return self.student + self.student_head + self.teacher + self.teacher_head


def count_step(
    student: DecoderArchitecture, teacher: DecoderArchitecture | None, tokens: StepTokens, method: StepMethod
) -> StepFlops:
    """FLOPs of one optimizer step, forward and backward of both models; teacher: None in supervised training.

    Raises:
        UserError: online modules on more layers than the teacher has.
    """
    layer = layer_work(student, tokens.rows, tokens.width, needs=True, trains=True, recompute=method.recompute)
    # The range of the vocabulary is the larger model's, also where the other has fewer rows.
    vocab = max(arch.vocab_size for arch in (student, teacher) if arch is not None)
    logits, moves = tokens.loss_tokens * vocab, method.online is not None
    head, teacher_head = heads_work(student, teacher, logits, moves=moves, anchor=method.anchor)
    trunk = times(layer, student.num_layers)
    if teacher is None:
        return StepFlops(trunk, head, Work(), teacher_head, logits)
    passes = 4 if method.anchor else 2  # with an anchor a second loss, between the two teachers
    return StepFlops(trunk, head, _teacher_work(teacher, tokens, method), teacher_head, logits * passes)


def heads_work(
    student: DecoderArchitecture, teacher: DecoderArchitecture | None, logits: int, *, moves: bool, anchor: bool
) -> tuple[Work, Work]:
    """The student's and the teacher's head, which make `logits` each.

    A product forward, one backward for the hidden states of a model that learns, one for the student's head itself. The
    anchor's loss makes the logits of both teachers once more.
    """
    product = 2 * logits * student.hidden_size
    head = Work(product, 2 * product)
    if teacher is None:
        return head, Work()
    product = 2 * logits * teacher.hidden_size
    teacher_head = Work(product, product * moves)
    return head, teacher_head + Work(2 * product, product) if anchor else teacher_head


def _teacher_work(arch: DecoderArchitecture, tokens: StepTokens, method: StepMethod) -> Work:
    online, rows, width = method.online, tokens.rows, tokens.width
    frozen = layer_work(arch, rows, width, needs=False, trains=False)
    first = arch.num_layers if online is None else first_online_layer(online, arch.num_layers)
    below = Work() if method.cached else times(frozen, first)
    if online is None:
        return below
    if online.kind == "head":
        return below + bottleneck_work(online.rank, arch.hidden_size, rows * width, needs=False)
    lowest, above = (
        layer_work(arch, rows, width, needs=needs, trains=False, online=online, recompute=method.recompute)
        for needs in (False, True)
    )
    carrying = arch.num_layers - first
    original = times(frozen, carrying) if method.anchor else Work()
    return below + lowest + times(above, carrying - 1) + original


def times(work: Work, count: int) -> Work:
    """The same work so many times."""
    return Work(work.forward * count, work.backward * count, work.repeated * count)
