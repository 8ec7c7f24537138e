"""A few rows of a shard's logits at a time, so that temporaries stay small; rows without a label are never read."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .layout import Logits
from .spec import LossSpec

CPU_BLOCK = 1 << 17  # elements of a block: 512 KiB of fp32, so that the handful in flight stay in cache
GPU_BLOCK = 1 << 24

Rows = slice | Tensor


def row_blocks(logits: Logits, spec: LossSpec) -> Iterator[Rows]:
    """Row indices of labelled tokens, as many at a time as fit a block; slices where nothing is skipped."""
    size = CPU_BLOCK if logits.labels.device.type == "cpu" else GPU_BLOCK
    step = max(1, size // max(1, spec.num_columns))
    active = logits.labels != -100
    if bool(active.all()):
        for start in range(0, len(active), step):
            yield slice(start, min(start + step, len(active)))
    else:
        yield from active.nonzero().squeeze(1).split(step)


def load(x: Tensor, rows: Rows, spec: LossSpec, dtype: torch.dtype) -> Tensor:
    """These rows of a shard [n, V_local], without its padding and in the computing dtype."""
    return x[:, : spec.num_columns][rows].to(dtype)
