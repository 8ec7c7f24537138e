"""The teacher's k likeliest tokens, and one ghost token that holds the mass of all the others.

    p' = (p_v for v in S, P), P = sum of p outside S,    q' = (q_v for v in S, Q)    on the same set S
    F  = KL(p' || q') = sum_S p (lp - lq) + P (log P - log Q)

S are the k largest logits of the teacher; of equal ones the smaller id comes first. p' and q' are distributions, so F
is a divergence, and by the data-processing inequality at most KL(p || q), which it is for k = V. S is a constant to the
gradients, with respect to t and s:

    in S      p ((lp - lq) - F)          q - p
    outside   p ((log P - log Q) - F)    q - q P / Q

The set of a split vocabulary: every rank proposes its own k largest logits with their ids (`candidates`), which travel
with the statistics; the k-th of all proposals is the threshold (`thresholds`). P and Q are summed as logarithms: a tail
is where probabilities underflow.

Legend: n tokens, v columns of a shard, R ranks, k the largest k of the terms, at most V.
"""

import torch
from torch import Tensor

from .blocks import load, row_blocks
from .formulas import log_ratio, product
from .layout import Logits, compute_dtype
from .spec import LossSpec


def candidates(logits: Logits, spec: LossSpec) -> Tensor:
    """The k largest of this shard's teacher logits and their global ids, [2 k, n].

    Of equal logits those with the smallest ids. A shard of fewer columns fills up with -inf at an id beyond all others.
    """
    assert logits.teacher is not None
    dtype = compute_dtype(logits)
    out = torch.zeros(2, spec.num_candidates, len(logits.labels), dtype=dtype, device=logits.labels.device)
    out[0], out[1] = -torch.inf, spec.vocab_size
    count = min(spec.num_candidates, spec.num_columns)
    for rows in row_blocks(logits, spec) if count else ():
        values, columns = _largest(load(logits.teacher, rows, spec, dtype), count)
        out[0, :count, rows] = values.t()
        out[1, :count, rows] = (columns + spec.first).to(dtype).t()
    return out.flatten(0, 1)


def _largest(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits of [n, v] and their columns, in the order of the columns, [n, count] each; NaN as -inf."""
    x = x.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    least = x.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
    above, equal = x > least, x == least
    chosen = above | (equal & (equal.cumsum(1) <= count - above.sum(1, keepdim=True)))
    columns = chosen.nonzero()[:, 1].view(-1, count)
    return x.gather(1, columns), columns


def thresholds(proposed: Tensor, spec: LossSpec) -> Tensor:
    """Two rows for each k of ``spec.tops``, from the candidates of all ranks, [R, 2 k, n].

    The k-th largest logit of all, and its column, counted from this rank's first: so of the two rows the first is
    equal on all ranks and the second tells each which of its own columns come before it.
    """
    values, ids = (part.flatten(0, 1) for part in proposed.unflatten(1, (2, -1)).unbind(1))
    by_id = ids.argsort(0)
    values, ids = values.gather(0, by_id), ids.gather(0, by_id)
    order = values.argsort(dim=0, descending=True, stable=True)
    rows = []
    for top in spec.tops:
        last = order[min(top, spec.vocab_size) - 1].unsqueeze(0)
        rows += [values.gather(0, last), ids.gather(0, last) - spec.first]
    return torch.cat(rows)


def inside_top(teacher: Tensor, scalars: Tensor, row: int) -> Tensor:
    """Which columns of a shard [n, v] are among the teacher's likeliest; row is the first of `thresholds`."""
    least, last = scalars[row].unsqueeze(1), scalars[row + 1].unsqueeze(1)
    columns = torch.arange(teacher.shape[1], device=teacher.device)
    return (teacher > least) | ((teacher == least) & (columns <= last))


def join_top(sums: Tensor) -> Tensor:
    """F, log P and log Q, [3, n] fp64, from the `formulas.mixture_sums` of all ranks, [R, 3, n]."""
    log_tail_p, log_tail_q = sums[:, 1:].logsumexp(0)
    ghost = product(log_tail_p.exp(), log_ratio(log_tail_p, log_tail_q))
    return torch.stack([sums[:, 0].sum(0) + ghost, log_tail_p, log_tail_q])
