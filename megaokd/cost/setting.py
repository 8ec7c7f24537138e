"""What a prediction is about: two architectures, a configuration with its layout, a number of processes, a batch."""

from dataclasses import dataclass
from functools import cached_property

from megaokd.config import Config
from megaokd.cost.layer_shape import Shape
from megaokd.cost.parts import Part
from megaokd.distill.objective import Terms
from megaokd.mesh import data_parallel_size
from megaokd.models.architecture import DecoderArchitecture
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange
from megaokd.pipeline.split import split_model
from megaokd.pipeline.trunk import above_trunk, stage_above, trunk_layers


@dataclass(frozen=True)
class Setting:
    """A run as far as its cost depends on it. Layout, modules, objective and precision are the configuration's."""

    config: Config
    student: DecoderArchitecture
    teacher: DecoderArchitecture | None
    vocab_size: int
    """Tokens of the tokenizer."""
    processes: int
    width: int
    """Positions of a row, padding included."""
    loss_tokens: int
    """Positions of a micro-batch whose label carries loss."""
    logit_budget: int
    """Bytes of logits at a time, of both models together: `kernels.linear.GPU_BUDGET` or `CPU_BUDGET`."""

    @cached_property
    def data_parallel(self) -> int:
        """Replicas."""
        return data_parallel_size(self.config.parallel, self.processes)

    @property
    def micro_batches(self) -> int:
        """Of a step, on each replica."""
        return self.config.train.global_batch // (self.config.train.micro_batch * self.data_parallel)

    @property
    def has_modules(self) -> bool:
        """Whether the teacher is trained too."""
        return self.teacher is not None and self.config.teacher.online is not None

    @cached_property
    def terms(self) -> Terms:
        """The objective as the loss takes it."""
        return Terms.from_config(self.config.objective, has_teacher=self.teacher is not None, online=self.has_modules)

    @cached_property
    def tp(self) -> TensorParallel:
        """The first tensor-parallel rank, without a group."""
        parallel = self.config.parallel
        return TensorParallel(None, 0, parallel.tensor, parallel.sequence_parallel and parallel.tensor > 1)

    @cached_property
    def student_tp(self) -> TensorParallel:
        """The ranks that share the student's layers, likewise."""
        parallel, ranks = self.config.parallel, self.config.parallel.student_ranks
        return TensorParallel(None, 0, ranks, parallel.sequence_parallel and ranks > 1)

    @property
    def row_groups(self) -> int:
        """Groups of such ranks, each with rows of its own."""
        return self.tp.size // self.student_tp.size

    @cached_property
    def vocab(self) -> VocabRange:
        """The first rank's share of the vocabulary; the others hold as many rows."""
        padded = max(arch.vocab_size for arch in (self.student, self.teacher) if arch is not None)
        return VocabRange.split(self.vocab_size, padded, self.tp)

    @cached_property
    def first_module(self) -> int:
        """The lowest teacher layer with modules; the number of layers where they come behind the last or not at all."""
        return trunk_layers(self.config, self.teacher) if self.teacher is not None else 0

    @property
    def is_cached(self) -> bool:
        """Whether the teacher's layers below the modules are read from a trunk cache."""
        return self.teacher is not None and self.config.teacher.cache is not None

    @cached_property
    def students(self) -> list[Part]:
        """The student's slice of each stage."""
        return [Part(self.student, part) for part in split_model(self.student, self.config.parallel.num_stages)]

    @cached_property
    def teachers(self) -> list[Part | None]:
        """The teacher's slice of each stage; None where a stage has none."""
        stages = self.config.parallel.num_stages
        if self.teacher is None:
            return [None] * stages
        slices = split_model(self.teacher, stages)
        begins = stage_above(slices, self.first_module) if self.is_cached else 0
        online = self.config.teacher.online
        return [
            None
            if stage < begins
            else Part(
                self.teacher,
                above_trunk(part, self.first_module) if self.is_cached else part,
                frozen=True,
                online=online,
                first_module=self.first_module,
                anchored=bool(self.terms.anchor),
            )
            for stage, part in enumerate(slices)
        ]

    @cached_property
    def sent_from(self) -> int:
        """The first stage that puts out a hidden state of the teacher."""
        return next((stage for stage, part in enumerate(self.teachers) if part is not None), len(self.teachers))

    @cached_property
    def moves_from(self) -> int:
        """The first stage whose output of the teacher wants a gradient; the number of stages where none does."""
        if self.teacher is None or not self.has_modules:
            return self.config.parallel.num_stages
        return stage_above(split_model(self.teacher, self.config.parallel.num_stages), self.first_module)

    def own_stages(self, pipeline_rank: int) -> range:
        """The stages of a pipeline rank."""
        return range(pipeline_rank, self.config.parallel.num_stages, self.config.parallel.pipeline)

    def shape(self, part: Part) -> Shape:
        """A micro-batch in a model's slice; of the student, the rows of a rank's group."""
        return self.teacher_shape if part.frozen else self.student_shape

    @cached_property
    def teacher_shape(self) -> Shape:
        """A micro-batch in the teacher's layers."""
        return self._shape(self.tp, 2 if self.config.teacher.dtype == "bfloat16" else 4, row_groups=1)

    @cached_property
    def student_shape(self) -> Shape:
        """A micro-batch in the student's layers."""
        return self._shape(self.student_tp, 4, self.row_groups)

    def _shape(self, tp: TensorParallel, stored: int, row_groups: int) -> Shape:
        return Shape(
            self.config.train.micro_batch // row_groups,
            self.width,
            tp.size,
            tp.sequence_parallel,
            self.config.train.precision,
            stored,
            self.config.data.packing,
            row_groups,
        )
