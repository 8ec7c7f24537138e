"""Backend "compiled": the eager formulas made into one loop nest each by torch.compile, for the CPU.

Statistics are taken per block of about `BLOCK` columns, so that a block stays in the first-level cache between its
maximum and its sums, and because Inductor's plain sum over a whole row loses a digit and a half; blocks are then joined
like ranks. Rows without a label are computed and masked (eager skips them).

Code is compiled at the first call of each objective (its terms, not its weights) and kept by Inductor's cache on disk:
5 to 15 s, or 3 s from the cache.
"""

import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from . import eager, formulas
from .gradient import Side, label_weight, side_gradient, side_of
from .layout import Logits, Target, compute_dtype
from .merge import join_parts
from .spec import LossSpec, Mixture, Stat

BLOCK = 1280
ROWS = 128
COMPILERS = ("g++", "clang++", "c++")


def is_available(device: torch.device) -> bool:
    """On a CPU with a C++ compiler."""
    return device.type == "cpu" and any(shutil.which(name) for name in COMPILERS)


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # Without the thresholds Inductor keeps intermediates of the gradients in buffers of its own, within the innermost
    # loop: a quarter of the time in bf16. One limit for each objective: by default all functions made here would share
    # one, as they share their code. Some of the options are missing from torch 2.13's type stubs.
    compiled: Callable[..., Any] = torch.compile(  # type: ignore[call-overload]
        function,
        dynamic=True,
        fullgraph=True,
        isolate_recompiles=True,
        recompile_limit=64,
        options={"realize_opcount_threshold": 500, "realize_reads_threshold": 100},
    )
    return compiled


@functools.lru_cache(maxsize=32)
def _statistics_code(temperature: float, dtype: torch.dtype) -> Callable[..., Tensor]:
    def run(student: Tensor, teacher: Tensor | None) -> Tensor:
        """[n, blocks, width] of both -> [blocks, K, n], LABEL and ARGMAX left at 0."""
        num_tokens, num_blocks, _ = student.shape
        rows = formulas.block_statistics(
            student.to(dtype).flatten(0, 1),
            None if teacher is None else teacher.to(dtype).flatten(0, 1),
            temperature,
        )
        return torch.stack([row.view(num_tokens, num_blocks).t() for row in rows], dim=1)

    return _compile(run)


@functools.lru_cache(maxsize=32)
def _mixtures_code(mixtures: tuple[Mixture, ...], temperature: float, dtype: torch.dtype) -> Callable[..., Tensor]:
    def run(student: Tensor, teacher: Tensor, scalars: Tensor) -> Tensor:
        """[n, blocks, width] of both, scalars [K, n] -> [blocks, 3 * mixtures, n]."""
        num_tokens, num_blocks, _ = student.shape
        per_block = scalars.repeat_interleave(num_blocks, dim=1)
        s, t = (x.to(dtype).flatten(0, 1) for x in (student, teacher))
        sums = formulas.block_mixtures(s, t, per_block, mixtures, temperature, {})
        return torch.stack([row.view(num_tokens, num_blocks).t() for row in sums], dim=1)

    return _compile(run)


@functools.lru_cache(maxsize=32)
def _gradients_code(sides: tuple[Side, ...], dtype: torch.dtype) -> Callable[..., None]:
    def run(
        student: Tensor,
        teacher: Tensor | None,
        scalars: Tensor,
        local_label: Tensor,
        counted: Tensor,
        weights: list[Tensor],
        outs: list[Tensor],
    ) -> None:
        """A side's weights [terms + 1, n] are upstream times each term's weight, last that of the one-hot label."""
        s, t = student.to(dtype), None if teacher is None else teacher.to(dtype)
        columns = torch.arange(student.shape[1], device=student.device, dtype=torch.int32)
        is_label = local_label.unsqueeze(1) == columns
        results = []
        for side, side_weights, out in zip(sides, weights, outs, strict=True):
            own, other = (s, t) if side.name == "student" else (t, s)
            assert own is not None
            per_term = [weight.unsqueeze(1) for weight in side_weights.unbind(0)]
            gradient = side_gradient(side, per_term[:-1], own, other, scalars)
            gradient = torch.where(is_label, gradient - per_term[-1], gradient)
            results.append((out, torch.where(counted.unsqueeze(1), gradient, 0.0)))
        for out, gradient in results:
            out.copy_(gradient)

    return _compile(run)


def _block_shape(num_columns: int) -> tuple[int, int]:
    """Number and width of equal blocks; the few columns that remain are for eager code."""
    num_blocks = max(1, round(num_columns / BLOCK))
    return num_blocks, num_columns // num_blocks


def _as_blocks(x: Tensor | None, num_blocks: int, width: int) -> Tensor | None:
    return None if x is None else x[:, : num_blocks * width].unflatten(1, (num_blocks, width))


def _columns(logits: Logits, start: int, stop: int) -> tuple[Tensor, Tensor | None]:
    return logits.student[:, start:stop], None if logits.teacher is None else logits.teacher[:, start:stop]


def _row_chunks(logits: Logits) -> Iterator[Logits]:
    """`ROWS` tokens at a time, so that what is known of their blocks stays small beside the logits."""
    for start in range(0, len(logits.labels), ROWS):
        rows = slice(start, start + ROWS)
        teacher = None if logits.teacher is None else logits.teacher[rows]
        yield Logits(logits.student[rows], teacher, logits.labels[rows])


def statistics(logits: Logits, spec: LossSpec) -> Tensor:
    """See `eager.statistics`; rows without a label hold numbers of no meaning."""
    if spec.num_columns == 0 or len(logits.labels) == 0:
        return eager.statistics(logits, spec)
    return torch.cat([_statistics(chunk, spec) for chunk in _row_chunks(logits)], dim=1)


def _statistics(logits: Logits, spec: LossSpec) -> Tensor:
    dtype = compute_dtype(logits)
    num_blocks, width = _block_shape(spec.num_columns)
    code = _statistics_code(spec.temperature, dtype)
    parts = code(_as_blocks(logits.student, num_blocks, width), _as_blocks(logits.teacher, num_blocks, width))
    tail = num_blocks * width
    if tail < spec.num_columns:
        student, teacher = (None if x is None else x.to(dtype) for x in _columns(logits, tail, spec.num_columns))
        assert student is not None
        rest = torch.stack(formulas.block_statistics(student, teacher, spec.temperature))
        parts = torch.cat([parts, rest.unsqueeze(0)])
    joint = join_parts(parts, spec.temperature).to(dtype)
    for side, x in zip((Stat.STUDENT_MAX, Stat.TEACHER_MAX), _columns(logits, 0, spec.num_columns), strict=True):
        if x is not None:
            joint[side + Stat.STUDENT_LABEL] = formulas.label_logit(x, logits.labels - spec.first)
            joint[side + Stat.STUDENT_ARGMAX] = (_argmax(x, parts[:, side], width) + spec.first).to(dtype)
    return joint


def _argmax(x: Tensor, tops: Tensor, width: int) -> Tensor:
    """First column of the largest logit, looked for in the winning block only; tops [blocks, n]."""
    winner = tops.argmax(0)
    windows = x.unfold(1, min(width, x.shape[1]), 1)  # a view: every window of the width of a block
    start = (winner * width).clamp(max=windows.shape[1] - 1)
    picked = windows[torch.arange(len(x), device=x.device), start]
    return start + picked.to(tops.dtype).argmax(1)


def mixtures(logits: Logits, scalars: Tensor, spec: LossSpec) -> Tensor:
    """See `eager.mixtures`."""
    if spec.num_columns == 0 or len(logits.labels) == 0:
        return eager.mixtures(logits, scalars, spec)
    pairs = zip(_row_chunks(logits), scalars.split(ROWS, dim=1), strict=True)
    return torch.cat([_mixtures(chunk, rows, spec) for chunk, rows in pairs], dim=1)


def _mixtures(logits: Logits, scalars: Tensor, spec: LossSpec) -> Tensor:
    dtype = compute_dtype(logits)
    num_blocks, width = _block_shape(spec.num_columns)
    code = _mixtures_code(spec.mixtures, spec.temperature, dtype)
    blocks = (_as_blocks(x, num_blocks, width) for x in (logits.student, logits.teacher))
    total = code(*blocks, scalars).double().sum(0)
    student, teacher = _columns(logits, num_blocks * width, spec.num_columns)
    if student.shape[1]:
        assert teacher is not None
        student, teacher = student.to(dtype), teacher.to(dtype)
        total += torch.stack(formulas.block_mixtures(student, teacher, scalars, spec.mixtures, spec.temperature, {}))
    return total.to(dtype)


def gradients(logits: Logits, scalars: Tensor, spec: LossSpec, targets: Mapping[str, Target]) -> None:
    """See `eager.gradients`."""
    if spec.num_columns == 0 or len(logits.labels) == 0:
        eager.gradients(logits, scalars, spec, targets)
        return
    student, teacher = _columns(logits, 0, spec.num_columns)
    sides: list[Side] = []
    weights: list[Tensor] = []
    outs: list[Tensor] = []
    for name, target in targets.items():
        side, term_weights = side_of(spec, name)
        sides.append(side)
        factors = scalars.new_tensor([*term_weights, label_weight(side, term_weights)])
        weights.append(factors.unsqueeze(1) * target.upstream.to(scalars.dtype))
        target.out[:, spec.num_columns :] = 0
        own, narrowed = (logits.student, student) if name == "student" else (logits.teacher, teacher)
        if narrowed is None or target.out is not own:  # in place: one tensor to the compiler, not two
            narrowed = target.out[:, : spec.num_columns]
        outs.append(narrowed)
    code = _gradients_code(tuple(sides), compute_dtype(logits))
    counted = logits.labels != -100
    local_label = (logits.labels - spec.first).int()
    code(student, teacher, scalars, local_label, counted, weights, outs)
