"""A model's slice on one stage: which layers it has, how autograd meets them, and the parameters a rank holds of it.

Parameters are counted from the decoder itself, built on the meta device a layer at a time: whatever a family has is
counted, and there is no second list of names.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch

from megaokd.config import OnlineModules
from megaokd.cost.layer_shape import LayerKind
from megaokd.distill.online_modules import place_online_modules
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import VOCABULARY, Decoder, DecoderSlice
from megaokd.models.initialize import freeze
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange


@dataclass(frozen=True)
class Part:
    """A slice of the student or of the teacher."""

    arch: DecoderArchitecture
    part: DecoderSlice
    frozen: bool = False
    online: OnlineModules | None = None
    first_module: int = 0
    """The lowest layer that carries modules; the number of layers where they are behind the last."""
    anchored: bool = False
    """The layers from the first module on run once more without modules."""

    def kind(self, layer: int) -> LayerKind:
        """How autograd meets a layer."""
        if not self.frozen:
            return LayerKind(needs=True, trains=True)
        if self.online is None or layer < self.first_module:
            return LayerKind()
        return LayerKind(needs=layer > self.first_module, online=self.online)

    def kinds(self) -> list[tuple[LayerKind, int, int]]:
        """Every kind of layer, how many of it have a window, and how many see everything."""
        masked, plain = Counter[LayerKind](), Counter[LayerKind]()
        for layer in self.part.layers:
            has_window = bool(self.arch.windows) and self.arch.windows[layer] is not None
            (masked if has_window else plain)[self.kind(layer)] += 1
        return [(kind, masked[kind], plain[kind]) for kind in dict.fromkeys([*masked, *plain])]

    @property
    def moves_out(self) -> bool:
        """Whether the hidden state that comes out of its layers wants a gradient."""
        return not self.frozen or (self.online is not None and self.part.layers.stop > self.first_module)

    @property
    def num_again(self) -> int:
        """Layers that run once more for the original teacher."""
        return sum(layer >= self.first_module for layer in self.part.layers) if self.anchored else 0


@dataclass(frozen=True)
class Held:
    """Parameters of a rank: the elements of each, in the order in which the optimizer gets them."""

    frozen: int = 0
    matrices: tuple[int, ...] = ()
    """Trained, with weight decay."""
    vectors: tuple[int, ...] = ()
    """Trained, without."""
    partial: int = 0
    """Elements of the *global* tensors whose gradients are summed over the tensor-parallel group."""
    complete: tuple[int, ...] = ()
    """Trained, neither partial nor of the vocabulary: what row groups sum among themselves, where there are any."""

    def __add__(self, other: "Held") -> "Held":
        return Held(
            self.frozen + other.frozen,
            self.matrices + other.matrices,
            self.vectors + other.vectors,
            self.partial + other.partial,
            self.complete + other.complete,
        )

    @property
    def trained(self) -> int:
        """Elements that are trained."""
        return sum(self.matrices) + sum(self.vectors)


@lru_cache(maxsize=4096)
def held_by(part: Part, vocab: VocabRange, tp: TensorParallel) -> Held:
    """The parameters of a slice on a rank."""
    ends = _ends(part.arch, part.part.first, part.part.last, part.frozen, part.online, vocab, tp)
    below = sum(part.online is None or layer < part.first_module for layer in part.part.layers)
    without = _layer(part.arch, part.frozen, None, vocab, tp)
    total = ends
    for layer in (without,) * below + (_layer(part.arch, part.frozen, part.online, vocab, tp),) * (
        len(part.part.layers) - below
    ):
        total += layer
    return total


@lru_cache(maxsize=1024)
def _layer(
    arch: DecoderArchitecture, frozen: bool, online: OnlineModules | None, vocab: VocabRange, tp: TensorParallel
) -> Held:
    last = range(arch.num_layers - 1, arch.num_layers)  # carries modules wherever a layer does
    return _count(arch, DecoderSlice(last, first=False, last=False), frozen, online, vocab, tp)


@lru_cache(maxsize=1024)
def _ends(
    arch: DecoderArchitecture,
    first: bool,
    last: bool,
    frozen: bool,
    online: OnlineModules | None,
    vocab: VocabRange,
    tp: TensorParallel,
) -> Held:
    return _count(arch, DecoderSlice(range(0), first, last), frozen, online, vocab, tp)


def _count(
    arch: DecoderArchitecture,
    part: DecoderSlice,
    frozen: bool,
    online: OnlineModules | None,
    vocab: VocabRange,
    tp: TensorParallel,
) -> Held:
    with torch.device("meta"):
        decoder = Decoder(arch, part, vocab, tp)
    if frozen:
        freeze(decoder.parameters())
    if online is not None and (len(part.layers) or part.last):
        place_online_modules(decoder, online)
    total = Held()
    for name, parameter, layout in decoder.named_layouts():
        count = parameter.numel()
        if not parameter.requires_grad:
            total += Held(frozen=count)
            continue
        partial = torch.Size(layout.global_shape(parameter.shape)).numel() if layout.partial and tp.size > 1 else 0
        is_matrix = parameter.ndim > 1
        complete = () if partial or name in VOCABULARY else (count,)
        total += Held(0, (count,) if is_matrix else (), () if is_matrix else (count,), partial, complete)
    return total
