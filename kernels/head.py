"""One model's head on one rank: logits of a chunk of tokens, and the gradients that a chunk's logit gradient adds.

Legend: T tokens, D hidden size, V_local rows of the head's shard, c tokens of a chunk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GRADIENT_ROWS = 16384  # rows of the head whose low-precision product is in flight at a time, before it is added in fp32


@dataclass
class HeadGradients:
    """What is asked for, None where it is not. Weight and bias gradients add up in fp32 (fp64 for fp64 heads)."""

    hidden: Tensor | None  # [T, D]
    weight: Tensor | None  # [V_local, D]
    bias: Tensor | None  # [V_local]


@dataclass
class Head:
    """hidden [T, D], weight [V_local, D] and bias [V_local], all of the dtype that products are taken in."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def create(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> "Head":
        """Casts to autocast's dtype where autocast is on, as a linear layer would."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return cls(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

    def new_gradients(self, hidden: bool, weight: bool, bias: bool) -> HeadGradients:
        """Buffers for the gradients that are asked for."""
        exact = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        return HeadGradients(
            torch.empty_like(self.hidden) if hidden else None,
            torch.zeros_like(self.weight, dtype=exact) if weight else None,
            torch.zeros(len(self.weight), dtype=exact, device=self.weight.device) if bias else None,
        )

    def new_logits(self, length: int) -> Tensor:
        """A buffer ``[length, V_local]`` for `logits`."""
        return self.weight.new_empty(length, len(self.weight))

    def logits(self, rows: slice, buffer: Tensor) -> Tensor:
        """``[c, V_local]``, the first c rows of the buffer."""
        hidden = self.hidden[rows]
        if self.bias is None:
            return torch.mm(hidden, self.weight.t(), out=buffer[: len(hidden)])
        return torch.addmm(self.bias, hidden, self.weight.t(), out=buffer[: len(hidden)])

    def add_gradients(self, rows: slice, logit_grad: Tensor, gradients: HeadGradients) -> None:
        """Adds a chunk's share, logit_grad [c, V_local]; the hidden gradient is partial, of this rank's columns."""
        if gradients.hidden is not None:
            torch.mm(logit_grad, self.weight, out=gradients.hidden[rows])
        if gradients.weight is not None:
            _add_product(gradients.weight, logit_grad, self.hidden[rows])
        if gradients.bias is not None:
            gradients.bias += logit_grad.sum(0, dtype=gradients.bias.dtype)


def _add_product(total: Tensor, logit_grad: Tensor, hidden: Tensor) -> None:
    """``total += logit_grad^T hidden`` without rounding the product to a lower precision than the total's."""
    if logit_grad.dtype == total.dtype:
        total.addmm_(logit_grad.t(), hidden)
        return
    for start in range(0, len(total), GRADIENT_ROWS):
        block = slice(start, start + GRADIENT_ROWS)
        left = logit_grad[:, block].t()
        if total.is_cuda:
            total[block] += torch.mm(left, hidden, out_dtype=total.dtype)
        else:
            total[block].addmm_(left.to(total.dtype), hidden.to(total.dtype))
