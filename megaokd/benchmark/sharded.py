"""A vocabulary split over ranks: ours against gathering all logits, and against one collective for each quantity."""

import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from megaokd.benchmark.fused import measure_fused
from megaokd.benchmark.logits import by_autograd, ours
from megaokd.benchmark.measure import Call, Gradients, Row, agreeing, measure
from megaokd.benchmark.problem import TOLERANCE, Problem, check, expect


class _FiveCollectives(torch.autograd.Function):
    """`problem.OKD` as it is usually sharded: all-reduces of each model's maximum, of each one's sum, and of the rest.

    Returns the summed loss. The gradients are elementwise; p, q and the log ratio are kept.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor, labels: Tensor, first: int, group: dist.ProcessGroup) -> Tensor:
        logs = []
        for x in (s, t):
            top = x.amax(1, keepdim=True)
            dist.all_reduce(top, op=dist.ReduceOp.MAX, group=group)
            centred = x - top
            total = centred.exp().sum(1, keepdim=True)
            dist.all_reduce(total, group=group)
            logs.append(centred - total.log())
        log_q, log_p = logs
        p, q, ratio = log_p.exp(), log_q.exp(), log_p - log_q
        local = labels - first
        owned = (local >= 0) & (local < s.shape[1])
        column = local.clamp(0, s.shape[1] - 1).unsqueeze(1)
        rest = torch.stack([(p * ratio).sum(1), *(x.gather(1, column).squeeze(1) * owned for x in logs)])
        dist.all_reduce(rest, group=group)
        kl, log_q_label, log_p_label = rest
        ctx.save_for_backward(p, q, ratio, kl, column, owned)
        return (1.1 * kl - log_q_label - log_p_label).sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        p, q, ratio, kl, column, owned = ctx.saved_tensors
        one = -owned.to(p.dtype).unsqueeze(1)
        student = (2 * q - p).scatter_add_(1, column, one)
        teacher = (p + 0.1 * p * (ratio - kl.unsqueeze(1))).scatter_add_(1, column, one)
        return student * upstream, teacher * upstream, None, None, None


def _five(shard: Problem, first: int, group: dist.ProcessGroup) -> Call:
    return by_autograd(shard, "both", lambda *inputs: _FiveCollectives.apply(*inputs, first, group))


def _gathered(shard: Problem, first: int, group: dist.ProcessGroup) -> Call:
    """All logits on every rank, then our loss on the whole; each rank keeps its own columns of the gradients."""

    def call() -> tuple[Tensor, Gradients]:
        whole = []
        for x in (shard.student, shard.teacher):
            parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
            dist.all_gather(parts, x.detach(), group=group)
            whole.append(torch.cat(parts, dim=1).requires_grad_())
        total, gradients = ours(Problem(whole[0], whole[1], shard.labels), "both")()
        columns = slice(first, first + shard.student.shape[1])
        return total, tuple(x[:, columns].clone() for x in gradients)

    return call


def _measure_rank(num_tokens: int, vocab: int, group: dist.ProcessGroup, repetitions: int) -> list[Row]:
    device = torch.device("cpu")
    whole = Problem.create(num_tokens, vocab, torch.float32, device)
    ranks, rank = dist.get_world_size(group), dist.get_rank(group)
    width = vocab // ranks
    columns = slice(rank * width, (rank + 1) * width)
    expected = expect(whole, "both")
    expected.gradients = tuple(x[:, columns].clone() for x in expected.gradients)
    s, t = (x.detach()[:, columns].clone().requires_grad_() for x in (whole.student, whole.teacher))
    shard = Problem(s, t, whole.labels)
    del whole
    rows = [
        Row("MegaOKD", ours(shard, "both", group=group, vocab_start=columns.start, vocab_size=vocab)),
        Row("all logits gathered, then MegaOKD", _gathered(shard, columns.start, group)),
        Row("five all-reduces, torch formula", _five(shard, columns.start, group)),
    ]
    for row in rows:
        check(row, expected, TOLERANCE[torch.float32])
    measure(agreeing(rows, group), repetitions, device, group)
    return rows


def _worker(rank: int, ranks: int, folder: str, num_tokens: int, vocab: int, fused: bool, repetitions: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    group = dist.group.WORLD
    assert group is not None
    if fused:
        rows = measure_fused(num_tokens, vocab, torch.device("cpu"), group, repetitions)
    else:
        rows = _measure_rank(num_tokens, vocab, group, repetitions)
    if rank == 0:
        kept = [(row.name, row.seconds, row.extra_bytes, row.refused) for row in rows]
        torch.save(kept, Path(folder) / "rows.pt")
    dist.barrier()
    dist.destroy_process_group()


def measure_sharded(ranks: int, num_tokens: int, vocab: int, repetitions: int, *, fused: bool) -> list[Row]:
    """Rows as rank 0 of `ranks` gloo processes saw them, one thread each."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(_worker, (ranks, folder, num_tokens, vocab, fused, repetitions), nprocs=ranks)
        saved = torch.load(Path(folder) / "rows.pt", weights_only=True)
    return [Row(name, _gone, seconds, extra, refused) for name, seconds, extra, refused in saved]


def _gone() -> tuple[Tensor, Gradients]:
    raise AssertionError("this row ran in another process")
