"""What can be wrong with a call, told in the caller's words."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import group_size
from .spec import LossSpec
from .terms import CROSS_ENTROPY, Objective, parse_objective

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_logits(student: Tensor, teacher: Tensor | None, labels: Tensor) -> None:
    """Shapes, dtypes and devices of `distillation_loss`."""
    for name, logits in (("student_logits", student), ("teacher_logits", teacher)):
        if logits is None:
            continue
        if logits.dtype not in FLOATS:
            raise ValueError(f"{name} are {logits.dtype}; they must be one of fp32, bf16, fp16, fp64")
        if logits.dim() == 0 or logits.shape[:-1] != labels.shape:
            raise ValueError(
                f"{name} have shape {tuple(logits.shape)} and labels {tuple(labels.shape)};"
                " the logits must have the labels' shape and one more dimension, the vocabulary"
            )
        if logits.shape[-1] != student.shape[-1]:
            raise ValueError(
                f"this rank has {student.shape[-1]} columns of the student's logits and {logits.shape[-1]} of the"
                " teacher's; both must hold the same range of token ids (see repartition for vocabularies that are"
                " padded differently)"
            )
        if logits.device != labels.device:
            raise ValueError(f"{name} are on {logits.device}, labels on {labels.device}; move them together")


def check_labels(labels: Tensor, vocab_size: int) -> None:
    """Raises for a label that does not exist, on the CPU only.

    Elsewhere that would wait for the device; there the loss of such a token is NaN instead.
    """
    if labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"labels are {labels.dtype}; they must be int64 token ids, -100 where there is no loss")
    if labels.device.type != "cpu":
        return
    wrong = labels[(labels != -100) & ((labels < 0) | (labels >= vocab_size))]
    if len(wrong):
        raise ValueError(
            f"label {int(wrong[0])} is outside the vocabulary of {vocab_size} tokens"
            f" ({len(wrong)} such labels); use -100 where there is no loss"
        )


def shard_columns(
    columns: int, vocab_start: int, vocab_size: int | None, group: dist.ProcessGroup | None
) -> tuple[int, int]:
    """How many of this rank's columns are tokens, and the true vocabulary size.

    Whether the ranks' ranges join without gap or overlap cannot be seen from one rank; `vocab_range` makes such ranges.
    """
    if vocab_size is None:
        if group_size(group) > 1:
            raise ValueError("vocab_size must be given with a group: one rank's columns do not tell the vocabulary")
        vocab_size = vocab_start + columns
    if vocab_start < 0 or vocab_size < 1:
        raise ValueError(f"vocab_start is {vocab_start} and vocab_size {vocab_size}; they start at 0 and at 1")
    if group_size(group) == 1 and (vocab_start != 0 or columns < vocab_size):
        raise ValueError(
            f"without a group the {columns} columns from id {vocab_start} on must cover all {vocab_size} tokens;"
            " pass the tensor-parallel group that holds the others"
        )
    return max(0, min(columns, vocab_size - vocab_start)), vocab_size


def build_spec(
    student: Objective,
    teacher: Objective,
    temperature: float,
    has_teacher: bool,
    columns: int,
    vocab_start: int,
    vocab_size: int | None,
    group: dist.ProcessGroup | None,
) -> LossSpec:
    """The checked options of one call."""
    student_terms, teacher_terms = parse_objective(student, "student"), parse_objective(teacher, "teacher")
    if not student_terms:
        raise ValueError("the student's objective is empty; name at least one term, such as {'ce': 1.0}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature is {temperature}; it must be finite and positive")
    if not has_teacher:
        needing = [term.kind for term in student_terms if term.kind != CROSS_ENTROPY]
        if needing or teacher_terms:
            raise ValueError(
                f"without a teacher only 'ce' can be asked of the student, not {needing or 'a teacher objective'}"
            )
    num_columns, vocab_size = shard_columns(columns, vocab_start, vocab_size, group)
    return LossSpec(student_terms, teacher_terms, float(temperature), vocab_start, num_columns, vocab_size, has_teacher)
