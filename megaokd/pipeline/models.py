"""Both models of a run, cut into the stages that this rank holds."""

from dataclasses import dataclass

from megaokd.config import Config
from megaokd.distill.online_modules import attach_online_modules
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.from_teacher import chosen_layers, load_from_teacher
from megaokd.models.huggingface_weights import load_decoder
from megaokd.models.initialize import initialize_decoder
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.rows import RowGroups
from megaokd.parallel.vocab import VocabRange
from megaokd.pipeline.blueprint import Blueprint
from megaokd.pipeline.split import split_model
from megaokd.pipeline.stage import DistillationStage, Slot
from megaokd.pipeline.trunk import above_trunk, stage_above, trunk_layers
from megaokd.terms import ANCHOR


@dataclass
class DistillationModels:
    """The stages of this rank, lowest first, and what the rest of the run needs to know about the models."""

    stages: list[DistillationStage]
    student_architecture: DecoderArchitecture
    teacher_architecture: DecoderArchitecture | None
    vocab: VocabRange
    tp: TensorParallel
    rows: RowGroups | None
    slots: tuple[Slot, ...]

    @property
    def students(self) -> list[Decoder]:
        """The student's slices on this rank."""
        return [stage.student for stage in self.stages]

    @property
    def teachers(self) -> list[Decoder]:
        """The teacher's slices on this rank; empty without a teacher."""
        return [stage.teacher for stage in self.stages if stage.teacher is not None]


def build_models(plan: Blueprint) -> DistillationModels:
    """Build, initialise or load both models' slices for this rank.

    Raises:
        UserError: a damaged model folder, or online modules that the teacher has no place for.
    """
    config = plan.config
    student_slices = split_model(plan.student, plan.num_stages)
    teacher_slices = split_model(plan.teacher, plan.num_stages) if plan.teacher is not None else []
    trunk = trunk_layers(config, plan.teacher) if plan.teacher is not None else 0
    cached = plan.teacher is not None and config.teacher.cache is not None
    first_of_teacher = stage_above(teacher_slices, trunk) if cached else 0
    anchored_from = trunk if _is_anchored(config) else None
    stages = []
    for index in plan.own_stages:
        student = _student(plan, student_slices[index])
        teacher = None
        if plan.teacher is not None and index >= first_of_teacher:
            part = above_trunk(teacher_slices[index], trunk) if cached else teacher_slices[index]
            teacher = _teacher(plan, part)
        takes_trunk = cached and index == first_of_teacher
        stages.append(
            DistillationStage(
                student, teacher, config.train.precision, takes_trunk=takes_trunk, anchored_from=anchored_from
            )
        )
    slots = [
        Slot(
            plan.student.hidden_size,
            grad_from_stage=0,
            row_groups=plan.rows.size if plan.rows is not None else 1,
            sequence_parts=plan.student_tp.sequence_parts,
        )
    ]
    if plan.teacher is not None:
        moving = stage_above(teacher_slices, trunk) if config.teacher.online is not None else plan.num_stages
        slots += _teacher_slots(plan, plan.teacher.hidden_size, first_of_teacher, moving)
    return DistillationModels(stages, plan.student, plan.teacher, plan.vocab, plan.tp, plan.rows, tuple(slots))


def _student(plan: Blueprint, part: DecoderSlice) -> Decoder:
    """A slice with the weights that training starts from."""
    config, teacher = plan.config, plan.teacher
    decoder = plan.empty_student(part)
    recipe = config.student.from_teacher
    if config.student.path is not None:
        load_decoder(decoder, config.student.path)
    elif recipe is not None and teacher is not None and config.teacher.path is not None:
        load_from_teacher(decoder, config.teacher.path, teacher, chosen_layers(recipe, teacher.num_layers))
    else:
        initialize_decoder(decoder, config.train.seed)
    return decoder.train()


def _teacher(plan: Blueprint, part: DecoderSlice) -> Decoder:
    """A slice with the teacher's weights, frozen, and this slice's online modules, if any."""
    decoder = plan.frozen_teacher(part)
    if plan.config.teacher.online is not None:
        attach_online_modules(decoder, plan.config.teacher.online, seed=plan.config.train.seed)
    return decoder.eval()


def _is_anchored(config: Config) -> bool:
    """Whether the original teacher's hidden state is needed beside the adapted one's."""
    return config.teacher.online is not None and bool(config.objective.teacher.get(ANCHOR))


def _teacher_slots(plan: Blueprint, size: int, first: int, moving: int) -> list[Slot]:
    """The teacher's hidden state, from stage `first` on; where it begins to move, the original's for an anchor."""
    parts = plan.tp.sequence_parts
    slots = [Slot(size, grad_from_stage=moving, sent_from_stage=first, sequence_parts=parts)]
    if _is_anchored(plan.config):
        slots.append(Slot(size, grad_from_stage=plan.num_stages, sent_from_stage=moving, sequence_parts=parts))
    return slots
