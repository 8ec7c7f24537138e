"""`linear_distillation_loss`: from hidden states and heads; the whole logits never exist."""

import torch
import torch.distributed as dist
from torch import Tensor

from .backends import select_backend
from .checks import build_spec, check_heads, check_labels
from .chunks import Wanted
from .collectives import group_size
from .linear_function import GradientsInForward, GradientsRecomputed
from .loss import DistillationOutput
from .passes import Context
from .sequence import gather_sequence
from .spec import LossSpec
from .terms import Objective

CPU_BUDGET = 24 << 20
GPU_BUDGET = 1 << 30


def chunk_length(
    spec: LossSpec, ranks: int, hidden: Tensor, weight: Tensor, num_tokens: int, budget: int | None
) -> int:
    """`chunk_tokens` of a call; no budget: the device's."""
    device = hidden.device.type
    if budget is None:
        budget = CPU_BUDGET if device == "cpu" else GPU_BUDGET
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return chunk_tokens(spec.vocab_size, ranks, num_tokens, dtype.itemsize, budget, has_teacher=spec.has_teacher)


def chunk_tokens(vocab_size: int, ranks: int, num_tokens: int, itemsize: int, budget: int, *, has_teacher: bool) -> int:
    """Tokens whose logits fit the budget in bytes, at least one; a multiple of 32 where that many fit.

    Counted for an even split of the vocabulary, so that every rank makes the same chunks whatever its own share.
    """
    num_buffers = min(2, ranks) * (2 if has_teacher else 1)
    fitting = budget // (num_buffers * -(-vocab_size // ranks) * itemsize)
    aligned = fitting // 32 * 32 if fitting >= 32 else max(1, fitting)
    return max(1, min(aligned, num_tokens))


def linear_distillation_loss(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    labels: Tensor,
    *,
    student: Objective,
    teacher: Objective = None,
    token_weight: Tensor | None = None,
    student_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    temperature: float = 1.0,
    group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    sequence_parallel: bool = False,
    recompute: bool = False,
    memory_budget: int | None = None,
    backend: str = "auto",
) -> DistillationOutput:
    """Summed losses of student and teacher, computed in chunks of tokens from hidden states and head shards.

    student_hidden  [T, D_s]; pass loss tokens only, an ignored token still costs its products
    student_weight  [V_local, D_s], this rank's rows of the head (it may be the embedding's own weight)
    teacher_hidden  [T, D_t], None if the student only learns from labels
    teacher_weight  [V_local, D_t], frozen: it never gets a gradient
    labels          [T] int64, -100 = no loss; all tokens, also with sequence_parallel
    token_weight    [T], what each token's loss is multiplied by, such as 1 / loss tokens of the global batch; None = 1.
                    An argument, because gradients are computed before the upstream gradient of a token can be known
    student_bias, teacher_bias  [V_local]
    sequence_parallel  hidden states are this rank's share [T / ranks, D] of the tokens, in the order of the ranks
    recompute       return losses per token, [T] each, and compute the logits again in backward: for callers that
                    differentiate per-token losses; about 1.4 times the time
    memory_budget   bytes of logits at a time, both models together; None = 24 MiB on the CPU, 1 GiB elsewhere
    other arguments as in `distillation_loss`

    Returns student_loss and teacher_loss, weighted, 0-dimensional ([T] with recompute); metrics per token, unweighted.
    Gradients go to student_hidden, student_weight, student_bias and, if the teacher's objective has a weight, to
    teacher_hidden. Under tensor parallelism the hidden states are the same on every rank and the gradient returned for
    them is complete: the sum over the group is taken inside, do not add another (with sequence_parallel it is this
    rank's share of that). The head's gradient is that of this rank's rows. It adds up in fp32 over the chunks whatever
    the products are taken in, which is autocast's dtype under autocast, else the weight's. Backward runs once per call
    (recompute: as often as the graph is kept), and may be scaled by any upstream gradient.

    Collectives forward, per chunk: one all-gather as `distillation_loss` makes (two with two-pass terms), and
    an all-reduce of [chunk, D] for each hidden state that gets a gradient, both overlapped with the products of the
    next chunk; with sequence_parallel one all-gather of each hidden state before. None backward. With recompute the
    all-reduces come in backward.
    Saved for backward: the gradients, [T, D_s] + [V_local, D_s] fp32 + [T, D_t] as far as they are wanted.
    Memory beyond that: `memory_budget` (more on a rank whose share of the vocabulary is above average). All ranks of a
    group must ask for the same gradients and the same budget.
    Errors: as `distillation_loss`.
    """
    hidden, weights = [student_hidden, teacher_hidden], [student_weight, teacher_weight]
    ranks = group_size(group)
    widths = check_heads(hidden, weights, [student_bias, teacher_bias], labels, ranks if sequence_parallel else 1)
    spec = build_spec(student, teacher, temperature, widths, vocab_start, vocab_size, group)
    check_labels(labels, spec.vocab_size)
    if sequence_parallel and ranks > 1:
        student_hidden = gather_sequence(student_hidden, group)
        teacher_hidden = None if teacher_hidden is None else gather_sequence(teacher_hidden, group)
    dtype = torch.float64 if student_weight.dtype == torch.float64 else torch.float32
    if token_weight is None:
        token_weight = torch.ones(labels.shape, dtype=dtype, device=labels.device)
    elif token_weight.shape != labels.shape:
        raise ValueError(f"token_weight has shape {tuple(token_weight.shape)}, labels {tuple(labels.shape)}")
    wanted = _wanted(student_hidden, student_weight, student_bias, teacher_hidden, spec.trains_teacher)
    chunk = chunk_length(spec, ranks, student_hidden, student_weight, len(labels), memory_budget)
    chosen = select_backend(backend, labels.device, len(labels), spec.num_columns, (*spec.student, *spec.teacher))
    context = Context(spec, group, chosen)
    teacher_head = (None if teacher_weight is None else teacher_weight.detach(), teacher_bias)
    inputs = (student_hidden, student_weight, student_bias, teacher_hidden, teacher_head, labels.long())
    if recompute:
        student_loss, teacher_loss, stacked = GradientsRecomputed.apply(*inputs, chunk, context, wanted)
        student_loss, teacher_loss = student_loss * token_weight, teacher_loss * token_weight
    else:
        weight = token_weight.detach().to(dtype)
        student_loss, teacher_loss, stacked = GradientsInForward.apply(*inputs, weight, chunk, context, wanted)
    return DistillationOutput(student_loss, teacher_loss, dict(zip(spec.metric_names, stacked, strict=True)))


def _wanted(
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    teacher_hidden: Tensor | None,
    trains_teacher: bool,
) -> Wanted:
    """Which inputs get a gradient; none where autograd is off."""
    enabled = torch.is_grad_enabled()
    return Wanted(
        student_hidden=enabled and student_hidden.requires_grad,
        student_weight=enabled and student_weight.requires_grad,
        student_bias=enabled and student_bias is not None and student_bias.requires_grad,
        teacher_hidden=enabled and trains_teacher and teacher_hidden is not None and teacher_hidden.requires_grad,
    )
