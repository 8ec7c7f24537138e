"""What both models of a run are built from, and whether they fit the layout, the data and each other."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from megaokd.config import Config, Student
from megaokd.errors import UserError
from megaokd.mesh import ParallelMesh, divisors, split_tensor_axis
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.from_teacher import student_architecture
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.huggingface_weights import load_decoder
from megaokd.models.initialize import freeze
from megaokd.models.rotary import LongRopeScaling
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.rows import RowGroups
from megaokd.parallel.vocab import VocabRange
from megaokd.pipeline.trunk import check_cache
from megaokd.precision import DTYPES


@dataclass(frozen=True)
class Blueprint:
    """What the decoders of a run are built from, before any weight is read."""

    config: Config
    mesh: ParallelMesh
    student: DecoderArchitecture
    teacher: DecoderArchitecture | None
    vocab: VocabRange
    tp: TensorParallel
    """Of the teacher, the vocabulary and, without `rows`, the student."""
    student_tp: TensorParallel
    rows: RowGroups | None

    @classmethod
    def draw(cls, config: Config, vocab_size: int, mesh: ParallelMesh) -> "Blueprint":
        """Read both architectures; refuse what does not fit together. Collective where the student is split less.

        vocab_size: tokens of the tokenizer; a model may have more rows (padding), not fewer.

        Raises:
            UserError: a layout that does not fit, an unsupported model folder, a vocabulary too small.
        """
        student, teacher = read_architectures(config, vocab_size)
        check_models(config, student, teacher, vocab_size)
        tp = TensorParallel.on(mesh.tensor, sequence_parallel=config.parallel.sequence_parallel)
        student_tp, rows = _student_split(config, mesh, tp)
        padded = max(arch.vocab_size for arch in (student, teacher) if arch is not None)
        return cls(config, mesh, student, teacher, VocabRange.split(vocab_size, padded, tp), tp, student_tp, rows)

    @property
    def num_stages(self) -> int:
        """Stages of the whole pipeline."""
        return self.config.parallel.num_stages

    @property
    def own_stages(self) -> range:
        """Those of this rank."""
        return range(self.mesh.pipeline.rank, self.num_stages, self.mesh.pipeline.size)

    def empty_student(self, part: DecoderSlice) -> Decoder:
        """A slice on this rank's device, its weights not yet set."""
        return self._empty(self.student, part, "float32", self.student_tp, self.rows)

    def _empty(
        self, arch: DecoderArchitecture, part: DecoderSlice, dtype: str, tp: TensorParallel, rows: RowGroups | None
    ) -> Decoder:
        with torch.device(self.mesh.device), _default_dtype(DTYPES[dtype]):
            return Decoder(arch, part, self.vocab, tp, recompute=self.config.parallel.recompute, rows=rows)

    def frozen_teacher(self, part: DecoderSlice) -> Decoder:
        """A slice with the teacher's weights, frozen."""
        assert self.teacher is not None
        assert self.config.teacher.path is not None
        decoder = self._empty(self.teacher, part, self.config.teacher.dtype, self.tp, None)
        load_decoder(decoder, self.config.teacher.path)
        freeze(decoder.parameters())
        return decoder.eval()


def read_architectures(config: Config, vocab_size: int) -> tuple[DecoderArchitecture, DecoderArchitecture | None]:
    """The student's and the teacher's, if there is one; vocab_size: of a student from scratch.

    Raises:
        UserError: an unsupported model folder.
    """
    teacher = read_architecture(config.teacher.path) if config.teacher.path is not None else None
    return configured_student(config.student, teacher, vocab_size), teacher


def configured_student(student: Student, teacher: DecoderArchitecture | None, vocab_size: int) -> DecoderArchitecture:
    """The student that a configuration asks for; vocab_size: of one from scratch.

    Raises:
        UserError: `student.from_teacher` beside `student.path`, or without a teacher; see `student_architecture`.
    """
    if student.from_teacher is None:
        if student.path is not None:
            return read_architecture(student.path)
        return DecoderArchitecture.from_config(student.architecture, vocab_size)
    if student.path is not None:
        raise UserError("student.from_teacher and student.path exclude one another; leave out one of the two")
    if teacher is None:
        raise UserError(
            "student.from_teacher needs a teacher, and this run has none (without teacher.path, and with method=sft, "
            "which leaves it out); give as student.path the student of a run that has one"
        )
    return student_architecture(student.from_teacher, teacher)


def check_models(
    config: Config, student: DecoderArchitecture, teacher: DecoderArchitecture | None, vocab_size: int
) -> None:
    """Refuse models that do not fit the layout, the data or the precision, before anything is built."""
    width = config.data.widest_batch
    _check_student_rows(config)
    ranks = {"student": config.parallel.student_ranks, "teacher": config.parallel.tensor}
    if config.parallel.student_tensor == "auto":
        ranks["student"] = max(student_splits(config, student), default=config.parallel.tensor)
    for name, arch in (("student", student), ("teacher", teacher)):
        if arch is None:
            continue
        key = "parallel.tensor" if ranks[name] == config.parallel.tensor else "parallel.student_tensor"
        arch.check_layout(name, key=key, tensor=ranks[name], stages=config.parallel.num_stages)
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
    check_cache(config, teacher)
    if student.dropout > 0:
        raise UserError(
            f"the student's config.json asks for dropout ({student.dropout}), which is not supported in training; set "
            "its dropout probabilities to 0.0"
        )
    if config.teacher.dtype == "bfloat16" and config.train.precision == "fp32":
        raise UserError("teacher.dtype=bfloat16 needs train.precision=bf16; with fp32 keep the teacher in float32")


def student_splits(config: Config, student: DecoderArchitecture) -> list[int]:
    """The values of `parallel.student_tensor` that suit the student's heads and a micro-batch's rows, ascending."""
    tensor, sizes = config.parallel.tensor, student.tensor_sizes()
    return [size for size in divisors(tensor) if size in sizes and config.train.micro_batch % (tensor // size) == 0]


def _check_student_rows(config: Config) -> None:
    """Refuse micro-batches whose rows the groups of a student's ranks cannot share."""
    tensor, inner, rows = config.parallel.tensor, config.parallel.student_ranks, config.train.micro_batch
    groups = tensor // inner
    if rows % groups:
        fitting = [size for size in divisors(tensor) if rows % (tensor // size) == 0]
        raise UserError(
            f"parallel.student_tensor={inner} with parallel.tensor={tensor} makes {groups} groups of ranks that share "
            f"the rows of a micro-batch, so train.micro_batch={rows} must be a multiple of {groups}; with this "
            f"micro-batch parallel.student_tensor can be one of {fitting}"
        )


def _student_split(config: Config, mesh: ParallelMesh, tp: TensorParallel) -> tuple[TensorParallel, RowGroups | None]:
    """The ranks that share a trunk of the student, and the groups of them where that is not the whole tensor axis."""
    inner = config.parallel.student_ranks
    if inner == tp.size:
        return tp, None
    split = split_tensor_axis(mesh, inner, config.train.timeout_s)
    trunk = TensorParallel()
    if split.trunk is not None:
        trunk = TensorParallel.on(split.trunk, sequence_parallel=config.parallel.sequence_parallel)
    return trunk, RowGroups(split.rows.group, split.rows.rank, split.rows.size, tp)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Inside, new parameters have this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
