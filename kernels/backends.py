"""Which code makes the passes over the vocabulary, chosen by name and device."""

from typing import Protocol

import torch
from torch import Tensor

from . import compiled, eager
from .layout import Logits
from .spec import LossSpec

BACKENDS = ("auto", "triton", "compiled", "eager")


class Backend(Protocol):
    """The three passes over a shard's columns; no backend communicates. `eager` documents each."""

    def statistics(self, logits: Logits, spec: LossSpec) -> Tensor:
        """One pass: rows of `spec.Stat`, [K, n]."""

    def mixtures(self, logits: Logits, scalars: Tensor, spec: LossSpec) -> Tensor:
        """A second pass for two-pass terms: [3 * mixtures, n]."""

    def gradients(
        self,
        logits: Logits,
        scalars: Tensor,
        spec: LossSpec,
        student_upstream: Tensor | None,
        teacher_upstream: Tensor | None,
        student_out: Tensor | None,
        teacher_out: Tensor | None,
    ) -> None:
        """Both gradients in one pass, written to the outs."""


def select_backend(name: str, device: torch.device) -> Backend:
    """The backend of that name; "auto" picks by device.

    Raises ValueError for an unknown name, RuntimeError for a backend that cannot run here: it is never replaced.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; the backends are {', '.join(BACKENDS)}")
    if name == "compiled" and compiled.is_available(device):
        return compiled
    if name == "triton" or (name == "auto" and device.type == "cuda"):
        return _triton(device)
    if name in ("auto", "eager"):
        return eager
    raise RuntimeError(f"backend {name!r} is not available on {device.type}; use 'eager' or 'auto'")


def _triton(device: torch.device) -> Backend:
    """Imported when first asked for: the rest of this folder works where there is no Triton."""
    try:
        from .gpu import backend
    except ImportError as error:
        raise RuntimeError(
            "backend 'triton' needs the package triton: pip install triton, on Linux; without it use backend='eager'"
        ) from error
    backend.check_device(device)
    return backend
