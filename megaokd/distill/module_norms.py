"""How large each online module has become: scale x the Frobenius norm of the product of its two matrices.

Of a LoRA module that is the norm of what it adds to the layer's weight. It is zero at the start.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

from megaokd.distill.bottleneck import Bottleneck
from megaokd.distill.low_rank import LowRankAdapter
from megaokd.mesh import Axis
from megaokd.models.decoder import Decoder
from megaokd.parallel.layout import TensorLayout

_MATRICES = {LowRankAdapter: ("lora_A", "lora_B"), Bottleneck: ("down", "up")}


@torch.no_grad()
def module_norms(teachers: Sequence[Decoder], tensor: Axis, pipeline: Axis) -> dict[str, float]:
    """The norm of every module of the whole teacher, by the place where it sits (`layers.7.self_attn.q_proj`).

    Equal on all ranks. With the matrices A [rank, in] and B [out, rank], |B A|^2 is the sum of the elementwise product
    of B^T B and A A^T, and both are sums over the ranks that hold slices. Collectives: an all-reduce of 2 rank^2 fp32
    numbers a module over the tensor-parallel ranks, an all-gather of names and norms over the pipeline's.
    """
    found = [module for part in teachers for module in _modules(part)]
    norms: dict[str, float] = {}
    if found:
        grams = [torch.stack([_gram(*first, dim=1), _gram(*last, dim=0)]) for _, _, first, last in found]
        flat = torch.cat([gram.flatten() for gram in grams])
        if tensor.size > 1:
            dist.all_reduce(flat, group=tensor.group)
        both = flat.view(len(grams), *grams[0].shape)  # a run's modules have one rank
        squares = (both[:, 0] * both[:, 1]).sum((1, 2), dtype=torch.float64).tolist()
        norms = {
            name: scale * math.sqrt(max(0.0, square)) for (name, scale, *_), square in zip(found, squares, strict=True)
        }
    if pipeline.size == 1:
        return norms
    everywhere: list[dict[str, float]] = [{}] * pipeline.size
    dist.all_gather_object(everywhere, norms, group=pipeline.group)
    return {name: norm for part in everywhere for name, norm in part.items()}


_Matrix = tuple[torch.Tensor, TensorLayout]


def _modules(part: Decoder) -> list[tuple[str, float, _Matrix, _Matrix]]:
    """(place, scale, entrance, end) of every module of a slice."""
    matrices = {name: (parameter, layout) for name, parameter, layout in part.named_layouts()}
    found: list[tuple[str, float, _Matrix, _Matrix]] = []
    for name, module in part.named_modules():
        if isinstance(module, LowRankAdapter | Bottleneck):
            first, last = (matrices[f"{name}.{matrix}"] for matrix in _MATRICES[type(module)])
            found.append((name.removesuffix("online").rstrip(".") or "head", module.scale, first, last))
    return found


def _gram(matrix: torch.Tensor, layout: TensorLayout, dim: int) -> torch.Tensor:
    """This rank's share of the products over dimension `dim`: [rank, rank]. Copies of a slice count once together."""
    held = layout.valid_part(matrix)
    return torch.tensordot(held, held, ([dim], [dim])) / layout.copies
