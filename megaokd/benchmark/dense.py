"""The formulas that somebody writes who has torch and an afternoon: whole softmaxes, autograd."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dense_forward_kl(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Summed KL(teacher || student) of logits [N, V], in fp32; the labels of a `peers.Loss` play no part."""
    log_q, log_p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def dense_joint(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """Summed losses of both models, `problem.OKD`: gradients of each reach its own logits only."""
    log_q, log_p = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    student_loss = F.nll_loss(log_q, labels, reduction="sum") + F.kl_div(
        log_q, log_p.detach(), reduction="sum", log_target=True
    )
    teacher_loss = F.nll_loss(log_p, labels, reduction="sum") + 0.1 * F.kl_div(
        log_q.detach(), log_p, reduction="sum", log_target=True
    )
    return student_loss + teacher_loss


def floor(student: Tensor, teacher: Tensor) -> None:
    """What no loss with both gradients can do without: two passes of exponentials with stores, and two copies."""
    with torch.no_grad():
        kept = [student.exp(), teacher.exp(), student.clone(), teacher.clone()]
        del kept
