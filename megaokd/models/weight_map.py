"""Where each of our tensors lies in a family's files: the name there, the rows of it that are ours, its orientation.

A projection of ours is a matrix [out, in] of its own. Families store it as it is, transposed, or together with others
in one matrix; `Location` says which, once for reading and once for writing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.families import FAMILIES
from megaokd.models.families.family import Place
from megaokd.parallel.layout import TensorLayout
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange

Region = tuple[slice, ...]


@dataclass(frozen=True)
class Location:
    """A tensor of ours inside one of a file: our row r is row (r // block) * stride + offset + r % block of it."""

    tensor: str
    rows: int
    """Output rows of the file's tensor; more than ours where others share it."""
    block: int
    stride: int
    offset: int
    transposed: bool

    def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the file's tensor, where `shape` is that of ours."""
        whole = (self.rows, *shape[1:])
        return whole[::-1] if self.transposed else whole

    def regions(self, layout: TensorLayout, shape: tuple[int, ...]) -> Iterator[tuple[slice, Region]]:
        """(rows of ours, counted from the first that the layout holds; region of the file's tensor) of a slice.

        shape: of our whole tensor.
        """
        start, stop, _ = layout.held(0).indices(shape[0])
        columns = layout.held(1)
        row = start
        while row < stop:
            count = min(self.block - row % self.block, stop - row)
            first = row // self.block * self.stride + self.offset + row % self.block
            region = (slice(first, first + count), *([columns] if len(shape) > 1 else []))
            yield slice(row - start, row - start + count), region[::-1] if self.transposed else region
            row += count


class WeightMap:
    """The locations of all tensors of an architecture."""

    def __init__(self, arch: DecoderArchitecture) -> None:
        self.family = FAMILIES[arch.family]
        self.arch = arch
        query, key = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
        self._rows = {
            "q_proj": query,
            "k_proj": key,
            "v_proj": key,
            "gate_proj": arch.intermediate_size,
            "up_proj": arch.intermediate_size,
        }

    def locate(self, name: str, shape: tuple[int, ...]) -> Location:
        """name: of a parameter of ours, in the whole model; shape: its whole shape."""
        module, _, kind = name.rpartition(".")
        place = self._place(module)
        tensor, transposed = f"{place.module}.{kind}", place.transposed and len(shape) > 1
        if not place.parts:
            return Location(tensor, shape[0], shape[0], shape[0], 0, transposed)
        sizes = [self._rows[part] for part in place.parts]
        index = place.parts.index(module.rpartition(".")[2])
        block, total = sizes[index], sum(sizes)
        if place.interleaved:
            block, total = self.arch.head_dim, self.arch.head_dim * len(sizes)
            return Location(tensor, sum(sizes), block, total, block * index, transposed)
        return Location(tensor, total, block, total, sum(sizes[:index]), transposed)

    def _place(self, module: str) -> Place:
        if not module.startswith("layers."):
            if module == "head" and self.arch.tied_head:
                module = "embed_tokens"
            return Place(self.family.top[module])
        _, layer, inner = module.split(".", 2)
        entry = self.family.layers[inner]
        place = entry if isinstance(entry, Place) else Place(entry)
        return replace(place, module=self.family.layer_prefix.format(layer) + place.module)

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a folder of this architecture must hold, with its shape."""
        shapes = {}
        for name, shape in whole_shapes(self.arch).items():
            location = self.locate(name, shape)
            shapes[location.tensor] = location.file_shape(shape)
        return shapes


def whole_shapes(arch: DecoderArchitecture) -> dict[str, tuple[int, ...]]:
    """The parameters of the whole model with their shapes; nothing is allocated."""
    with torch.device("meta"):
        vocab = VocabRange(0, arch.vocab_size, arch.vocab_size)
        decoder = Decoder(arch, DecoderSlice(range(arch.num_layers)), vocab, TensorParallel())
    return {name: tuple(parameter.shape) for name, parameter, _ in decoder.named_layouts()}
