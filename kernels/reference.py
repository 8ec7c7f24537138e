"""The loss as one would write it on a blackboard: gathered logits, fp64, autograd. Slow; tests compare against it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .terms import TOP, Objective, Term, parse_objective


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a || b), [N], with 0 log 0 = 0 (`where` twice, so that the unused branch sends no NaN backward)."""
    possible = log_a > -math.inf
    ratio = torch.where(possible, log_a, 0.0) - torch.where(possible, log_b, 0.0)
    return torch.where(possible, log_a.exp() * ratio, 0.0).sum(-1)


def _mix(log_a: Tensor, log_b: Tensor, share_of_a: float) -> Tensor:
    return torch.logaddexp(log_a + math.log(share_of_a), log_b + math.log1p(-share_of_a))


def _split(log_p: Tensor, top: int) -> list[int]:
    kept = min(top, log_p.shape[-1])
    return [kept, log_p.shape[-1] - kept]


def _rest(log_x: Tensor) -> Tensor:
    """The logarithm of the mass of all columns, [N, 1]; [N, 0] where there are none."""
    return log_x.logsumexp(-1, keepdim=True) if log_x.shape[-1] else log_x


def term_value(term: Term, log_p: Tensor, log_q: Tensor) -> Tensor:
    """One divergence per token, without weight and tau^2."""
    a, b = term.alpha, term.beta
    if term.kind == "forward_kl":
        return _kl(log_p, log_q)
    if term.kind == "reverse_kl":
        return _kl(log_q, log_p)
    if term.kind == "jsd":
        log_m = _mix(log_p, log_q, b)
        return b * _kl(log_p, log_m) + (1 - b) * _kl(log_q, log_m)
    if term.kind == "skew_forward_kl":
        return _kl(log_p, _mix(log_p, log_q, a))
    if term.kind == "skew_reverse_kl":
        return _kl(log_q, _mix(log_q, log_p, a))
    if term.kind == TOP:
        kept, rest = log_p.argsort(dim=-1, descending=True, stable=True).split(_split(log_p, term.top), -1)
        coarse = (torch.cat([x.gather(-1, kept), _rest(x.gather(-1, rest))], -1) for x in (log_p, log_q))
        return _kl(*coarse)
    assert term.kind == "tvd"
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


def _side(objective: Objective, own: Tensor, log_p: Tensor, log_q: Tensor, labels: Tensor, tau: float) -> Tensor:
    total = torch.zeros_like(own[..., 0])
    for term in parse_objective(objective, "reference"):
        if term.kind == "ce":
            value = F.cross_entropy(own, labels, ignore_index=-100, reduction="none")
        else:
            value = tau**2 * term_value(term, log_p, log_q)
        total = total + term.weight * value
    return total.masked_fill(labels == -100, 0.0)


def reference_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    student: Objective,
    teacher: Objective = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Student's and teacher's loss per token, [N] fp64, from whole logits [N, V] without padding."""
    s, t = student_logits.double(), teacher_logits.double()
    log_q, log_p = F.log_softmax(s / temperature, -1), F.log_softmax(t / temperature, -1)
    student_loss = _side(student, s, log_p.detach(), log_q, labels, temperature)
    teacher_loss = _side(teacher, t, log_p, log_q.detach(), labels, temperature)
    return student_loss, teacher_loss
