"""Backend "triton": one kernel for each of the three passes, on CUDA and ROCm devices.

Logits that the kernels do not cover are handed to eager code: fp64, and columns that do not lie side by side.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from .. import eager
from ..layout import Logits, Target
from ..merge import join_parts
from ..spec import NUM_MIXTURE_SUMS, LossSpec, Scalar, Stat
from .device.backward import gradients_kernel
from .device.forward import statistics_kernel
from .device.second_pass import mixtures_kernel
from .launch import LOADS, Launch, Parts, are_aligned, rows_of, vector_length
from .sides import SideCode, mixture_code, side_code


def check_device(device: torch.device) -> None:
    """Raises RuntimeError for a device that has no kernels, or for which Triton cannot build its driver."""
    if triton.knobs.runtime.interpret:
        return
    if device.type != "cuda":
        raise RuntimeError(
            f"backend 'triton' is not available on {device.type}: it needs a CUDA or ROCm device or, to look for"
            " errors slowly, TRITON_INTERPRET=1 in the environment; use 'auto' or 'eager'"
        )
    try:
        # Compiled once a process; otherwise by the first kernel, after models are read.
        _ = triton.runtime.driver.active
    except Exception as error:  # whatever the compiler and the loader raise
        raise RuntimeError(
            f"backend 'triton' cannot start ({' '.join(str(error).split())[:300]}): Triton needs a C compiler where it"
            " runs, gcc or the one that CC names; install one, or use 'eager'"
        ) from error


def _is_covered(logits: Logits, spec: LossSpec, *outs: Tensor | None) -> bool:
    tensors = [x for x in (logits.student, logits.teacher, *outs) if x is not None]
    if len(logits.labels) == 0 or spec.num_columns == 0:
        return False
    return all(x.dtype != torch.float64 and (x.stride(1) == 1 or x.shape[1] == 1) for x in tensors)


def statistics_launch(logits: Logits, spec: LossSpec) -> tuple[Launch, Tensor]:
    """The launch of the first pass and its output, [parts, K, n]."""
    num_tokens, vector = len(logits.labels), vector_length(logits.student, logits.teacher)
    rows = rows_of("student", logits.student) | rows_of("teacher", logits.teacher)
    parts = Parts.of(num_tokens, spec.num_columns, vector)
    out = torch.zeros(parts.parts, spec.num_stats, num_tokens, device=logits.labels.device)
    arguments: dict[str, Any] = {
        **rows,
        "labels": logits.labels.contiguous(),
        "out": out,
        "num_tokens": num_tokens,
        "num_columns": spec.num_columns,
        "first_id": spec.first,
        "blocks_per_part": parts.blocks_per_part,
        "temperature": spec.temperature,
        "TEACHER": spec.has_teacher,
        "TEACHER_ALIGNED": spec.has_teacher and are_aligned(rows, "teacher", vector),
        "TEMPERED": spec.temperature != 1.0,
        "ENTROPY": True,
        "ARGMAX": True,
        "NUM_STATS": spec.num_stats,
        "TEACHER_ROW": int(Stat.TEACHER_MAX),
        "FORWARD_ROW": int(Stat.FORWARD),
        "BLOCK": LOADS * vector,
        "VECTOR": vector,
    }
    return Launch(statistics_kernel, (num_tokens, parts.parts), arguments), out


def statistics(logits: Logits, spec: LossSpec) -> Tensor:
    """See `eager.statistics`; rows without a label hold zeros."""
    if not _is_covered(logits, spec):
        return eager.statistics(logits, spec)
    launch, out = statistics_launch(logits, spec)
    launch.run()
    return out[0] if len(out) == 1 else join_parts(out, spec.temperature).float()


def mixtures_launch(logits: Logits, scalars: Tensor, spec: LossSpec) -> tuple[Launch, Tensor]:
    """The launch of the second pass and its output, [parts, 3 * mixtures, n]."""
    num_tokens, vector = len(logits.labels), vector_length(logits.student, logits.teacher)
    rows = rows_of("student", logits.student) | rows_of("teacher", logits.teacher)
    parts = Parts.of(num_tokens, spec.num_columns, vector)
    num_sums = NUM_MIXTURE_SUMS * len(spec.mixtures)
    out = torch.zeros(parts.parts, num_sums, num_tokens, device=logits.labels.device)
    arguments: dict[str, Any] = {
        **rows,
        "labels": logits.labels.contiguous(),
        "scalars": scalars,
        "out": out,
        "num_tokens": num_tokens,
        "num_columns": spec.num_columns,
        "blocks_per_part": parts.blocks_per_part,
        "temperature": spec.temperature,
        "scalars_stride": scalars.stride(0),
        "TEACHER_ALIGNED": are_aligned(rows, "teacher", vector),
        "TEACHER_ROW": int(Scalar.TEACHER_MAX),
        "MIXTURES": mixture_code(spec),
        "BLOCK": LOADS * vector,
        "VECTOR": vector,
    }
    return Launch(mixtures_kernel, (num_tokens, parts.parts), arguments), out


def mixtures(logits: Logits, scalars: Tensor, spec: LossSpec) -> Tensor:
    """See `eager.mixtures`."""
    if not _is_covered(logits, spec):
        return eager.mixtures(logits, scalars, spec)
    launch, out = mixtures_launch(logits, scalars, spec)
    launch.run()
    return out[0] if len(out) == 1 else out.double().sum(0).float()


def gradients_launch(logits: Logits, scalars: Tensor, spec: LossSpec, targets: Mapping[str, Target]) -> Launch:
    """The launch of the backward pass."""
    codes: dict[str, SideCode] = {}
    arguments: dict[str, Any] = {}
    for name in ("student", "teacher"):
        upstream = weights = out = None
        if name in targets:
            codes[name], weights = side_code(spec, name)
            upstream, out = targets[name].upstream.float().contiguous(), targets[name].out
        arguments |= {f"{name}_upstream": upstream, f"{name}_weights": weights} | rows_of(f"{name}_out", out)
        arguments[f"{name.upper()}_SIDE"] = codes.get(name)
    needs_teacher = "teacher" in codes or any(code.needs_other for code in codes.values())
    teacher = logits.teacher if needs_teacher else None
    arguments |= rows_of("student", logits.student) | rows_of("teacher", teacher)
    num_tokens = len(logits.labels)
    vector = vector_length(logits.student, logits.teacher, *(target.out for target in targets.values()))
    parts = Parts.of(num_tokens, spec.num_columns, vector)
    for name in ("teacher", "student_out", "teacher_out"):
        arguments[f"{name.upper()}_ALIGNED"] = arguments[name] is not None and are_aligned(arguments, name, vector)
    arguments |= {
        "labels": logits.labels.contiguous(),
        "scalars": scalars,
        "num_columns": spec.num_columns,
        "first_id": spec.first,
        "blocks_per_part": parts.blocks_per_part,
        "temperature": spec.temperature,
        "scalars_stride": scalars.stride(0),
        "TEACHER": teacher is not None,
        "MIXTURES": mixture_code(spec) if any(code.mixed for code in codes.values()) else (),
        "TEACHER_ROW": int(Scalar.TEACHER_MAX),
        "FORWARD_ROW": int(Scalar.FORWARD_KL),
        "BLOCK": LOADS * vector,
        "VECTOR": vector,
    }
    return Launch(gradients_kernel, (num_tokens, parts.parts), arguments)


def gradients(logits: Logits, scalars: Tensor, spec: LossSpec, targets: Mapping[str, Target]) -> None:
    """See `eager.gradients`."""
    outs = [target.out for target in targets.values()]
    if not _is_covered(logits, spec, *outs):
        eager.gradients(logits, scalars, spec, targets)
        return
    for out in outs:
        out[:, spec.num_columns :] = 0
    gradients_launch(logits, scalars, spec, targets).run()
