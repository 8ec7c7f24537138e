"""Knowing whether the frozen teacher's weights in memory are still what they were."""

import hashlib
from collections.abc import Sequence

import torch

from megaokd.models.decoder import Decoder


def frozen_weights_hash(teachers: Sequence[Decoder]) -> str:
    """sha256 over the frozen parameters in this rank's memory."""
    total = hashlib.sha256()
    for teacher in teachers:
        for name, parameter in teacher.named_parameters():
            if not parameter.requires_grad:
                total.update(name.encode())
                total.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()
