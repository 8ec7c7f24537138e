"""Which code makes the passes over the vocabulary, chosen by name and device."""

import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from . import compiled, eager
from .layout import Logits, Target
from .spec import LossSpec
from .terms import TOP, Term

BACKENDS = ("auto", "triton", "compiled", "eager")
COMPILE_FROM = 1 << 20  # logits of a call, one model's

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """The three passes over a shard's columns; no backend communicates. `eager` documents each."""

    def statistics(self, logits: Logits, spec: LossSpec) -> Tensor:
        """One pass: rows of `spec.Stat`, [K, n]."""

    def mixtures(self, logits: Logits, scalars: Tensor, spec: LossSpec) -> Tensor:
        """A second pass for two-pass terms: [3 * mixtures, n]."""

    def gradients(self, logits: Logits, scalars: Tensor, spec: LossSpec, targets: Mapping[str, Target]) -> None:
        """The gradients of "student", "teacher" or both in one pass, written to their targets."""


def select_backend(
    name: str, device: torch.device, num_tokens: int, num_columns: int, terms: Iterable[Term] = ()
) -> Backend:
    """The backend of that name; "auto" picks by device and by the size of the call, and says so once.

    "auto" means "triton" on CUDA and ROCm devices, and on a CPU "compiled" for calls of at least `COMPILE_FROM` logits
    where a C++ compiler is found, else "eager": smaller calls would not earn back the seconds of compiling. The choice
    depends on the call alone, not on earlier ones, so that a resumed run repeats itself bit for bit.

    Terms of the kind forward_kl_top exist in "eager" alone: "auto" means that for objectives with such a term, of
    whatever weight, on every device.

    Raises ValueError for an unknown name, RuntimeError for a backend that cannot run here or lacks a term: it is never
    replaced.
    """
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; the backends are {', '.join(BACKENDS)}")
    if any(term.kind == TOP for term in terms):
        if name not in ("auto", "eager"):
            raise RuntimeError(f"backend {name!r} has no {TOP}; use 'eager' or 'auto', which then takes it")
        return eager
    if name == "auto":
        return _automatic(device, num_tokens * num_columns)
    if name == "compiled" and compiled.is_available(device):
        return compiled
    if name == "triton":
        return _triton(device)
    if name == "eager":
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


def _automatic(device: torch.device, num_logits: int) -> Backend:
    if device.type == "cuda":
        return _triton(device)
    if device.type != "cpu" or num_logits < COMPILE_FROM:
        return eager
    if not compiled.is_available(device):
        _say_once("the distillation loss runs without compilation, several times slower: no C++ compiler was found")
        return eager
    _say_once("the distillation loss uses its compiled CPU code; an objective's first call waits 5 to 15 s for it")
    return compiled


@functools.lru_cache
def _say_once(message: str) -> None:
    logger.warning(message)
