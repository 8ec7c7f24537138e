"""Mixed precision: fp32 weights and gradients, matrix products in bf16 through autocast in our own forward.

DeepSpeed's own mixed precision is not used: it rounds gradients to bf16 before they are summed.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""How numbers are stored, by the name that the configuration gives it."""


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context that forward passes and the loss run in."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
