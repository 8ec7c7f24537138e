"""`distillation_loss`: from logits to both losses, with gradients for the student and for a teacher that moves."""

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from .backends import select_backend
from .checks import build_spec, check_labels, check_logits
from .function import DistillationLoss
from .passes import Context
from .terms import Objective


@dataclass
class DistillationOutput:
    """What the loss returns, of the labels' shape, 0 where ignored (`linear_distillation_loss` sums the losses).

    student_loss  differentiable with respect to the student only
    teacher_loss  differentiable with respect to the teacher's modules only; not at all if the teacher is frozen
    metrics       detached and unweighted: student_ce, student_entropy and, with a teacher, teacher_ce, teacher_entropy,
                  top1_agreement (1 where both largest logits are the same token, the smallest id winning a tie),
                  forward_kl, reverse_kl, and every two-pass term that was asked for (key: `Term.name`).
                  Divergences are as they enter the loss, with their tau^2; entropies are those of p and q at tau.
    """

    student_loss: Tensor
    teacher_loss: Tensor
    metrics: dict[str, Tensor]


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    student: Objective,
    teacher: Objective = None,
    temperature: float = 1.0,
    token_weight: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    backend: str = "auto",
) -> DistillationOutput:
    """Per-token losses of a student and of its teacher, over a vocabulary that may be split over ranks.

    student_logits  [..., V_local] fp32, bf16, fp16 or fp64, any strides; never written to
    teacher_logits  likewise; None if the student only learns from labels
    labels          [...] int64 global token ids, already shifted; -100 = no loss, the row is not read
    student         the student's objective: {kind: weight} or a sequence of `Term`
    teacher         the online modules' objective; empty or None = frozen teacher, no gradient is computed for it
    temperature     tau of p and q in every divergence; "ce" stays at 1
    token_weight    [...] multiplies both losses, not the metrics
    group           tensor-parallel group; None = not sharded. All ranks pass the same labels and objectives
    vocab_start     global id of this shard's first column
    vocab_size      true size of the vocabulary; columns at and after it are padding and get no gradient. Needed with a
                    group of more than one rank
    backend         "auto" ("triton" on CUDA and ROCm devices; on a CPU "compiled" for large calls where there is a C++
                    compiler, which costs seconds at the first call; else "eager", and everywhere with forward_kl_top,
                    which the others do not have), or one by name

    The losses are fp32 (fp64 for fp64 inputs), equal on all ranks of the group; each rank's gradient is that of its own
    columns, complete, not to be summed over the group. The arithmetic is fp32, the merge of ranks fp64.

    Collectives: forward one all-gather of [14, N] fp32 ([6, N] without a teacher; none where the group has one rank or
    N = 0), and a second one of [3, N] per two-pass term if jsd, skew_forward_kl, skew_reverse_kl, tvd or forward_kl_top
    is among the terms; for the last the first all-gather has 2 k more rows, k the largest. Backward none.
    Saved for backward: the logits as they came, the labels, 8 numbers a token, 3 more for each two-pass term and 2 for
    each k.
    Errors: ValueError for shapes, dtypes, terms, weights, vocabulary ranges and (on the CPU; elsewhere the token's
    loss is NaN) labels that do not exist; RuntimeError for a backend that cannot run here.
    Formulas: README.md in this folder.
    """
    widths = check_logits(student_logits, teacher_logits, labels)
    spec = build_spec(student, teacher, temperature, widths, vocab_start, vocab_size, group)
    check_labels(labels, spec.vocab_size)
    if token_weight is not None and token_weight.shape != labels.shape:
        raise ValueError(f"token_weight has shape {tuple(token_weight.shape)}, labels {tuple(labels.shape)}")
    terms = (*spec.student, *spec.teacher)
    chosen = select_backend(backend, labels.device, labels.numel(), spec.num_columns, terms)
    student_loss, teacher_loss, stacked = DistillationLoss.apply(
        student_logits,
        teacher_logits,
        labels.flatten().long(),
        Context(spec, group, chosen),
    )
    metrics = {name: row.view(labels.shape) for name, row in zip(spec.metric_names, stacked, strict=True)}
    student_loss, teacher_loss = student_loss.view(labels.shape), teacher_loss.view(labels.shape)
    if token_weight is not None:
        student_loss, teacher_loss = student_loss * token_weight, teacher_loss * token_weight
    return DistillationOutput(student_loss, teacher_loss, metrics)
