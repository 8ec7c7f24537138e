"""What an evaluation wants to know of each token, over a vocabulary that may be split over ranks."""

import torch.distributed as dist
from torch import Tensor

from . import eager
from .checks import build_spec, check_labels, check_logits
from .merge import join_parts, merge_statistics
from .passes import Context, begin
from .spec import Stat


def token_measures(
    student_logits: Tensor,
    teacher_logits: Tensor | None,
    labels: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    vocab_start: int = 0,
    vocab_size: int | None = None,
) -> dict[str, Tensor]:
    """The metrics of `distillation_loss` at temperature 1, and of the student's likeliest token two more; no gradient.

    confidence  its probability
    hit         1 where it is the label, else 0; of equally likely tokens the smallest id counts

    Arguments and errors as in `distillation_loss`; labels [N], each a token. Returns [N] each, fp64, the same on every
    rank. One all-gather of [14, N] fp32, [6, N] without a teacher. Always by plain torch: which backend the loss would
    take depends on the size of the call.
    """
    widths = check_logits(student_logits, teacher_logits, labels)
    spec = build_spec({"ce": 1.0}, None, 1.0, widths, vocab_start, vocab_size, group)
    check_labels(labels, spec.vocab_size)
    stats = begin(student_logits, teacher_logits, labels, Context(spec, group, eager)).pending.wait()
    joint = join_parts(stats, spec.temperature)
    return merge_statistics(stats, spec).metrics | {
        "confidence": 1 / joint[Stat.STUDENT_SUM_1],
        "hit": (joint[Stat.STUDENT_ARGMAX] == labels).to(joint.dtype),
    }
