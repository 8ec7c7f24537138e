"""Both models of a run, cut into the stages that this rank holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from megaokd.config import Config, Student
from megaokd.distill.online_modules import attach_online_modules, first_online_layer, holds_modules
from megaokd.errors import UserError
from megaokd.mesh import ParallelMesh
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.from_teacher import chosen_layers, load_from_teacher, student_architecture
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.huggingface_weights import load_decoder
from megaokd.models.initialize import freeze, initialize_decoder
from megaokd.models.rotary import LongRopeScaling
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange
from megaokd.pipeline.split import split_model
from megaokd.pipeline.stage import DistillationStage, Slot
from megaokd.terms import ANCHOR

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class DistillationModels:
    """The stages of this rank, lowest first, and what the rest of the run needs to know about the models."""

    stages: list[DistillationStage]
    student_architecture: DecoderArchitecture
    teacher_architecture: DecoderArchitecture | None
    vocab: VocabRange
    tp: TensorParallel
    slots: tuple[Slot, ...]

    @property
    def students(self) -> list[Decoder]:
        """The student's slices on this rank."""
        return [stage.student for stage in self.stages]

    @property
    def teachers(self) -> list[Decoder]:
        """The teacher's slices on this rank; empty without a teacher."""
        return [stage.teacher for stage in self.stages if stage.teacher is not None]


def build_models(config: Config, vocab_size: int, mesh: ParallelMesh) -> DistillationModels:
    """Build, initialise or load both models' slices for this rank.

    vocab_size: tokens of the tokenizer; a model may have more rows (padding), not fewer.

    Raises:
        UserError: a layout that does not fit, an unsupported or damaged model folder, a vocabulary too small.
    """
    teacher_arch = read_architecture(config.teacher.path) if config.teacher.path is not None else None
    student_arch = _student_architecture(config.student, teacher_arch, vocab_size)
    check_models(config, student_arch, teacher_arch, vocab_size)
    tp = TensorParallel.on(mesh.tensor, sequence_parallel=config.parallel.sequence_parallel)
    padded = max(arch.vocab_size for arch in (student_arch, teacher_arch) if arch is not None)
    vocab = VocabRange.split(vocab_size, padded, tp)

    def empty(arch: DecoderArchitecture, part: DecoderSlice, dtype: str) -> Decoder:
        with torch.device(mesh.device), _default_dtype(DTYPES[dtype]):
            return Decoder(arch, part, vocab, tp, recompute=config.parallel.recompute)

    count = config.parallel.pipeline * config.parallel.virtual_stages
    mine = range(mesh.pipeline.rank, count, mesh.pipeline.size)
    student_slices = split_model(student_arch, count)
    teacher_slices = split_model(teacher_arch, count) if teacher_arch is not None else []
    first_online = None
    if teacher_arch is not None and config.teacher.online is not None:
        first_online = first_online_layer(config.teacher.online, teacher_arch.num_layers)
    stages = []
    for index in mine:
        student = _student(config, empty(student_arch, student_slices[index], "float32"), teacher_arch)
        teacher = None
        if teacher_arch is not None:
            teacher = _teacher(config, empty(teacher_arch, teacher_slices[index], config.teacher.dtype))
        anchored_from = first_online if config.objective.teacher.get(ANCHOR) else None
        stages.append(DistillationStage(student, teacher, config.train.precision, anchored_from=anchored_from))
    slots = [Slot(student_arch.hidden_size, grad_from_stage=0)]
    if teacher_arch is not None:
        slots += _teacher_slots(config, teacher_arch.hidden_size, teacher_slices, first_online)
    return DistillationModels(stages, student_arch, teacher_arch, vocab, tp, tuple(slots))


def check_models(
    config: Config, student: DecoderArchitecture, teacher: DecoderArchitecture | None, vocab_size: int
) -> None:
    """Refuse models that do not fit the layout, the data or the precision, before anything is built."""
    stages = config.parallel.pipeline * config.parallel.virtual_stages
    for name, arch in (("student", student), ("teacher", teacher)):
        if arch is None:
            continue
        arch.check_layout(name, tensor=config.parallel.tensor, stages=stages)
        if arch.vocab_size < vocab_size:
            raise UserError(
                f"the {name} has {arch.vocab_size} token embeddings, but the tokenizer of the data has {vocab_size} "
                "tokens: they do not belong together"
            )
        if config.data.sequence_length > arch.max_positions:
            raise UserError(
                f"data.sequence_length={config.data.sequence_length} is longer than the {arch.max_positions} positions "
                f"of the {name}"
            )
        width = -(-config.data.sequence_length // config.data.bucket) * config.data.bucket
        if arch.rotary is None and width > arch.max_positions:
            raise UserError(
                f"data.sequence_length={config.data.sequence_length}, rounded up to a multiple of data.bucket="
                f"{config.data.bucket}, is longer than the {arch.max_positions} learned positions of the {name}"
            )
        scaling = arch.rotary.scaling if arch.rotary is not None else None
        if config.data.packing and isinstance(scaling, LongRopeScaling) and width > scaling.original_positions:
            # The width of a batch decides between its two sets of factors; a packed row's says nothing of its texts.
            raise UserError(
                f"data.packing with rows of {width} positions does not fit the {name}: its LongRoPE changes beyond "
                f"{scaling.original_positions} positions, and the texts of a row are shorter than the row; lower "
                "data.sequence_length or do not pack"
            )
    if student.dropout > 0:
        raise UserError(
            f"the student's config.json asks for dropout ({student.dropout}), which is not supported in training; set "
            "its dropout probabilities to 0.0"
        )
    if config.teacher.dtype == "bfloat16" and config.train.precision == "fp32":
        raise UserError("teacher.dtype=bfloat16 needs train.precision=bf16; with fp32 keep the teacher in float32")


def _student_architecture(
    student: Student, teacher: DecoderArchitecture | None, vocab_size: int
) -> DecoderArchitecture:
    if student.from_teacher is None:
        if student.path is not None:
            return read_architecture(student.path)
        return DecoderArchitecture.from_config(student.architecture, vocab_size)
    if student.path is not None or teacher is None:
        raise UserError("student.from_teacher needs teacher.path, and excludes student.path")
    return student_architecture(student.from_teacher, teacher)


def _student(config: Config, decoder: Decoder, teacher: DecoderArchitecture | None) -> Decoder:
    """A slice with the weights that training starts from."""
    recipe = config.student.from_teacher
    if config.student.path is not None:
        load_decoder(decoder, config.student.path)
    elif recipe is not None and teacher is not None and config.teacher.path is not None:
        load_from_teacher(decoder, config.teacher.path, teacher, chosen_layers(recipe, teacher.num_layers))
    else:
        initialize_decoder(decoder, config.train.seed)
    return decoder.train()


def _teacher(config: Config, decoder: Decoder) -> Decoder:
    """A slice with the teacher's weights, frozen, and this slice's online modules, if any."""
    assert config.teacher.path is not None
    load_decoder(decoder, config.teacher.path)
    freeze(decoder.parameters())
    if config.teacher.online is not None:
        attach_online_modules(decoder, config.teacher.online, seed=config.train.seed)
    return decoder.eval()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, new parameters have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _teacher_slots(config: Config, size: int, slices: list[DecoderSlice], first_online: int | None) -> list[Slot]:
    """The teacher's hidden state, which needs a gradient from its first module on; there begins the original's."""
    if first_online is None:
        return [Slot(size, grad_from_stage=len(slices))]
    moving = next(index for index, part in enumerate(slices) if holds_modules(part, first_online))
    original = Slot(size, grad_from_stage=len(slices), sent_from_stage=moving)
    return [Slot(size, grad_from_stage=moving), *([original] if config.objective.teacher.get(ANCHOR) else [])]
