"""Online modules: the small trainable part of a frozen teacher.

LoRA (arXiv 2106.09685) on linear layers, y = W x + (alpha / rank) B (A x), B = 0 at the start, so the adapted teacher
begins as the teacher. Under tensor parallelism a module adds no collective to its layer:

    column-parallel base   A replicated, B split by rows; A sees the x that already entered the region
    row-parallel base      A split by columns, B replicated; B A_r x_r is added before the base layer's own sum

The replicated one of the two gets a partial gradient on every rank (`TensorLayout.partial`), summed once a step with
every other such parameter.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from megaokd.config import OnlineModules
from megaokd.errors import UserError
from megaokd.models.decoder import Decoder
from megaokd.models.initialize import fill_slice
from megaokd.parallel.layout import TensorLayout, replicated, with_dim
from megaokd.parallel.linear import ColumnParallelLinear, RowParallelLinear
from megaokd.parallel.region import TensorParallel


class LowRankAdapter(nn.Module):
    """(alpha / rank) B (A x): [..., in_local] -> [..., out_local]; fp32 parameters, no collective."""

    def __init__(
        self,
        base: ColumnParallelLinear | RowParallelLinear,
        tp: TensorParallel,
        *,
        rank: int,
        alpha: float,
        device: torch.device,
    ) -> None:
        super().__init__()
        out_local, in_local = base.weight.shape
        self.scale = alpha / rank
        self.enabled = True
        self.lora_A = nn.Parameter(torch.empty(rank, in_local, device=device))
        self.lora_B = nn.Parameter(torch.empty(out_local, rank, device=device))
        whole = replicated(tp.size, tp.rank, partial=True)
        if isinstance(base, ColumnParallelLinear):
            self._layouts = {"lora_A": whole, "lora_B": base.output}
        else:
            self._layouts = {"lora_A": with_dim(base.input, 1), "lora_B": whole}

    def layouts(self) -> dict[str, TensorLayout]:
        """One of the two is split like its base layer, the other is whole and its gradient partial."""
        return self._layouts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.linear(x, self.lora_A), self.lora_B) * self.scale


def first_online_layer(options: OnlineModules, num_layers: int) -> int:
    """The lowest decoder layer that carries modules; everything below it is a constant function of the input."""
    count = options.layers if options.layers is not None else -(-num_layers // 4)
    if count > num_layers:
        raise UserError(f"teacher.online.layers={count}, but the teacher has only {num_layers} layers")
    return num_layers - count


def attach_online_modules(teacher: Decoder, options: OnlineModules, *, seed: int) -> None:
    """Put modules on this stage's part of the teacher's last layers, initialised independently of the layout."""
    first = first_online_layer(options, teacher.arch.num_layers)
    for index, layer in teacher.layers.items():
        if int(index) < first:
            continue
        for linear in _target_layers(layer, options):
            linear.online = LowRankAdapter(
                linear, teacher.tp, rank=options.rank, alpha=options.alpha, device=linear.weight.device
            )
    for name, parameter, layout in teacher.named_layouts():
        if name.endswith("lora_A"):
            bound = 1.0 / math.sqrt(layout.global_shape(parameter.shape)[1])
            fill_slice(parameter, layout, name, seed, lambda whole, g, b=bound: whole.uniform_(-b, b, generator=g))  # type: ignore[misc]
        elif name.endswith("lora_B"):
            parameter.data.zero_()


def _target_layers(layer: nn.Module, options: OnlineModules) -> Iterator[ColumnParallelLinear | RowParallelLinear]:
    for name, module in layer.named_modules():
        if isinstance(module, ColumnParallelLinear | RowParallelLinear) and name.split(".")[-1] in options.targets:
            yield module


def online_adapters(teacher: nn.Module) -> list[LowRankAdapter]:
    """The modules on this stage's part of the teacher."""
    return [module for module in teacher.modules() if isinstance(module, LowRankAdapter)]


@contextmanager
def original_teacher(teacher: nn.Module) -> Iterator[None]:
    """Inside, the teacher is the original one: its modules are switched off."""
    adapters = online_adapters(teacher)
    for adapter in adapters:
        adapter.enabled = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.enabled = True
