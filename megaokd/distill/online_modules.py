"""Online modules: the small trainable part of a frozen teacher, and where it sits.

    lora         on linear layers of the last k decoder layers (`low_rank.py`)
    bottleneck   behind each of the last k decoder layers, on the residual stream (`bottleneck.py`)
    head         one bottleneck behind the final norm, as in PESF-KD (arXiv 2205.15308)

Every module ends in a matrix that is zero at the start, so the adapted teacher begins as the teacher.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from megaokd.config import OnlineModules
from megaokd.distill.bottleneck import Bottleneck
from megaokd.distill.low_rank import LowRankAdapter
from megaokd.errors import UserError
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.initialize import fill_slice
from megaokd.parallel.linear import ColumnParallelLinear, RowParallelLinear


def first_online_layer(options: OnlineModules, num_layers: int) -> int:
    """The lowest decoder layer that carries modules, `num_layers` where they all come behind the last one.

    Everything below it is a constant function of the input.
    """
    if options.kind == "head":
        return num_layers
    count = options.layers if options.layers is not None else -(-num_layers // 4)
    if count > num_layers:
        raise UserError(f"teacher.online.layers={count}, but the teacher has only {num_layers} layers")
    return num_layers - count


def holds_modules(part: DecoderSlice, first: int) -> bool:
    """Whether a stage's output depends on modules of its own, `first` being the lowest layer that carries some."""
    return part.last or part.layers.stop > first


def attach_online_modules(teacher: Decoder, options: OnlineModules, *, seed: int) -> None:
    """Put modules on this stage's part of the teacher, initialised independently of the layout.

    Raises:
        UserError: see `place_online_modules`.
    """
    place_online_modules(teacher, options)
    _initialize(teacher, seed)


def place_online_modules(teacher: Decoder, options: OnlineModules) -> None:
    """Put modules there without setting their weights, also on the meta device.

    Raises:
        UserError: more layers than there are, or linear layers that this teacher does not have.
    """
    first = first_online_layer(options, teacher.arch.num_layers)
    layers = [layer for index, layer in teacher.layers.items() if int(index) >= first]
    match options.kind:
        case "lora":
            for layer in layers:
                for linear in _target_layers(layer, options):
                    linear.online = LowRankAdapter(linear, teacher.tp, rank=options.rank, alpha=options.alpha)
        case "bottleneck":
            for layer in layers:
                layer.online = _bottleneck(teacher, options)
        case "head":
            if teacher.norm is not None:
                teacher.online = _bottleneck(teacher, options)


def _bottleneck(teacher: Decoder, options: OnlineModules) -> Bottleneck:
    arch, device = teacher.arch, next(teacher.parameters()).device
    return Bottleneck(arch.hidden_size, rank=options.rank, alpha=options.alpha, eps=arch.norm_eps, device=device)


def _target_layers(layer: nn.Module, options: OnlineModules) -> list[ColumnParallelLinear | RowParallelLinear]:
    found = {
        name.split(".")[-1]: module
        for name, module in layer.named_modules()
        if isinstance(module, ColumnParallelLinear | RowParallelLinear)
    }
    if options.targets is None:
        return list(found.values())
    missing = [name for name in options.targets if name not in found]
    if missing:
        raise UserError(f"teacher.online.targets: this teacher has no {missing[0]}; it has {', '.join(found)}")
    return [found[name] for name in dict.fromkeys(options.targets)]


def _initialize(teacher: Decoder, seed: int) -> None:
    """Matrices at a module's entrance uniform in +-1 / sqrt(inputs), those at its end zero."""
    for name, parameter, layout in teacher.named_layouts():
        *_, holder, kind = f".{name}".split(".")
        if holder != "online":
            continue
        if kind in ("lora_A", "down"):
            bound = 1.0 / math.sqrt(layout.global_shape(parameter.shape)[1])
            fill_slice(parameter, layout, name, seed, lambda whole, g, b=bound: whole.uniform_(-b, b, generator=g))  # type: ignore[misc]
        else:
            parameter.data.zero_()


def online_modules(teacher: nn.Module) -> list[LowRankAdapter | Bottleneck]:
    """The modules on this stage's part of the teacher."""
    return [module for module in teacher.modules() if isinstance(module, LowRankAdapter | Bottleneck)]


@contextmanager
def original_teacher(teacher: nn.Module) -> Iterator[None]:
    """Inside, the teacher is the original one: its modules are switched off."""
    modules = online_modules(teacher)
    for module in modules:
        module.enabled = False
    try:
        yield
    finally:
        for module in modules:
            module.enabled = True


def adapted_and_original(
    teacher: Decoder,
    adapted: torch.Tensor,
    original: torch.Tensor | None,
    first: int,
    places: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of this stage with and without modules; the layers below the first module run once for both.

    adapted, original: what the stage is given; None where no stage below holds a module. first: the lowest layer with
    modules. The original teacher's output carries no gradient.
    """
    if original is None:
        adapted = original = teacher.run_below(adapted, first, places)
    with original_teacher(teacher), torch.no_grad():
        frozen = teacher.run_from(original, first, places)
    return teacher.run_from(adapted, first, places), frozen
