"""What can be wrong with a call, told in the caller's words."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from .collectives import group_size
from .spec import LossSpec
from .terms import CROSS_ENTROPY, Objective, parse_objective

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def check_logits(student: Tensor, teacher: Tensor | None, labels: Tensor) -> list[int]:
    """Checks shapes, dtypes and devices of `distillation_loss`; returns the columns of each model's shard."""
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
        if logits.device != labels.device:
            raise ValueError(f"{name} are on {logits.device}, labels on {labels.device}; move them together")
    return [logits.shape[-1] for logits in (student, teacher) if logits is not None]


def check_heads(
    hidden: list[Tensor | None], weights: list[Tensor | None], biases: list[Tensor | None], labels: Tensor, shares: int
) -> list[int]:
    """Checks `linear_distillation_loss`, student first; hidden states hold 1 / shares of the tokens.

    Returns the rows of each model's head shard.
    """
    if (hidden[1] is None) != (weights[1] is None):
        raise ValueError("teacher_hidden and teacher_weight must be given together, or neither")
    if labels.dim() != 1 or len(labels) % shares:
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}; they must be one row of tokens, a multiple of {shares}"
        )
    widths = []
    for name, x, weight, bias in zip(("student", "teacher"), hidden, weights, biases, strict=True):
        if x is None or weight is None:
            continue
        if x.shape != (len(labels) // shares, weight.shape[-1]) or weight.dim() != 2:
            raise ValueError(
                f"{name}_hidden has shape {tuple(x.shape)}, {name}_weight {tuple(weight.shape)} and there are"
                f" {len(labels)} labels; expected [{len(labels) // shares}, D] and [V_local, D]"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"{name}_bias has shape {tuple(bias.shape)}, {name}_weight {tuple(weight.shape)}")
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"{name}_hidden is {x.dtype} and {name}_weight {weight.dtype}; cast one, or use autocast")
        if weight.dtype not in FLOATS:
            raise ValueError(f"{name}_weight is {weight.dtype}; it must be one of fp32, bf16, fp16, fp64")
        if not x.device == weight.device == labels.device:
            raise ValueError(f"{name}_hidden, {name}_weight and labels are on different devices; move them together")
        widths.append(len(weight))
    return widths


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
    widths: list[int], vocab_start: int, vocab_size: int | None, group: dist.ProcessGroup | None
) -> tuple[int, int]:
    """How many of this rank's columns are tokens, and the true vocabulary size.

    widths  columns of the student's shard and, with a teacher, of the teacher's; they may be padded differently as long
            as both hold the same token ids. Whether the ranks' ranges join without gap or overlap cannot be seen here
    """
    if vocab_size is None:
        if group_size(group) > 1:
            raise ValueError("vocab_size must be given with a group: one rank's columns do not tell the vocabulary")
        if len(set(widths)) > 1:
            raise ValueError(
                f"the student has {widths[0]} columns and the teacher {widths[1]}; if the rest is padding, say so with"
                " vocab_size, otherwise the two vocabularies differ"
            )
        vocab_size = vocab_start + widths[0]
    if vocab_start < 0 or vocab_size < 1:
        raise ValueError(f"vocab_start is {vocab_start} and vocab_size {vocab_size}; they start at 0 and at 1")
    columns = [max(0, min(width, vocab_size - vocab_start)) for width in widths]
    if len(set(columns)) > 1:
        raise ValueError(
            f"of the tokens from id {vocab_start} on, this rank has {columns[0]} of the student's and {columns[1]} of"
            " the teacher's; split both vocabularies into the same ranges before padding them"
        )
    if group_size(group) == 1 and (vocab_start != 0 or columns[0] < vocab_size):
        raise ValueError(
            f"without a group the {widths[0]} columns from id {vocab_start} on must cover all {vocab_size} tokens;"
            " pass the tensor-parallel group that holds the others"
        )
    return columns[0], vocab_size


def build_spec(
    student: Objective,
    teacher: Objective,
    temperature: float,
    widths: list[int],
    vocab_start: int,
    vocab_size: int | None,
    group: dist.ProcessGroup | None,
) -> LossSpec:
    """The checked options of one call; widths are those of `shard_columns`, two of them if there is a teacher."""
    has_teacher = len(widths) > 1
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
    num_columns, vocab_size = shard_columns(widths, vocab_start, vocab_size, group)
    return LossSpec(student_terms, teacher_terms, float(temperature), vocab_start, num_columns, vocab_size, has_teacher)
