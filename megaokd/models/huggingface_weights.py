"""Weights from and to Hugging Face folders, slice by slice: a rank reads only what it holds."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megaokd.agreement import together
from megaokd.errors import UserError
from megaokd.mesh import ParallelMesh
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder
from megaokd.models.weight_folder import INDEX, SINGLE, WeightFolder, open_weights, read_region
from megaokd.models.weight_map import WeightMap
from megaokd.parallel.layout import TensorLayout


@torch.no_grad()
def load_decoder(decoder: Decoder, folder: str | Path) -> None:
    """Fill this rank's slice of a decoder; the weights keep the decoder's dtype.

    Beside the slice no more than the rank's part of one tensor is in memory.

    Raises:
        UserError: a file is damaged; a tensor is missing, has another shape, or is one that the model does not have.
            All ranks check the whole folder, so all of them raise.
    """
    reader = FolderReader(folder, decoder.arch)
    for name, parameter, layout in decoder.named_layouts():
        parameter.zero_()
        shape = layout.global_shape(parameter.shape)
        reader.read_into(layout.valid_part(parameter), name, layout, shape)


class FolderReader:
    """Slices of our parameters out of a folder whose tensors were checked.

    Raises:
        UserError: see `load_decoder`.
    """

    def __init__(self, folder: str | Path, arch: DecoderArchitecture) -> None:
        self._weights = WeightFolder(folder)
        self._places = WeightMap(arch)
        self._left_out = _check_tensors(self._weights, self._places)

    def read_into(self, target: torch.Tensor, name: str, layout: TensorLayout, shape: tuple[int, ...]) -> None:
        """Copy the slice that `layout` describes of parameter `name`, whose whole shape is `shape`, to `target`."""
        location = self._places.locate(name, shape)
        stored = location.tensor.removeprefix(self._left_out)
        with open_weights(self._weights.file_of(stored)) as file:
            for rows, region in location.regions(layout, shape):
                part = read_region(file, stored, region)
                target[rows].copy_(part.T if location.transposed else part)


def _check_tensors(weights: WeightFolder, places: WeightMap) -> str:
    """Compare names and shapes with what config.json describes; what the folder leaves away in front of its names."""
    expected, found = places.expected(), weights.shapes()
    prefix = places.family.optional_prefix
    if any(name.startswith(prefix) for name in found):
        prefix = ""
    for name, shape in expected.items():
        stored = name.removeprefix(prefix)
        if stored not in found:
            raise UserError(f"{weights.folder}: the tensor {stored!r} is missing; expected shape {list(shape)}")
        if found[stored] != shape:
            raise UserError(
                f"{weights.file_of(stored)}: {stored} has shape {list(found[stored])}, config.json says {list(shape)}"
            )
    known = {name.removeprefix(prefix) for name in expected} | {f"{places.family.top['head']}.weight"}
    extra = [name for name in sorted(found.keys() - known) if not name.endswith(places.family.buffers or ("\0",))]
    if extra:
        raise UserError(
            f"{weights.file_of(extra[0])}: the tensor {extra[0]!r} {list(found[extra[0]])} has no place in the model "
            "that config.json describes"
        )
    return prefix


Named = Callable[[Decoder], Iterator[tuple[str, torch.Tensor, TensorLayout]]]
_Written = tuple[dict[str, str], int]
"""What a rank has written: tensor -> file, and bytes of tensors."""


def export_weights(
    parts: list[Decoder], folder: Path, mesh: ParallelMesh, named: Named = Decoder.named_layouts
) -> None:
    """Write the whole model as safetensors, one file a pipeline rank and an index where there are several.

    Collective over the world; the ranks with data rank 0 gather over their tensor group, one tensor at a time, and the
    first of a tensor group holds its stage's tensors in host memory until the file is written.

    named: what a part holds, (name, tensor, layout) of each; by default its parameters.

    Raises:
        RunError: on every rank, if a file could not be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    for part in parts if mesh.data.rank == 0 else []:
        _collect(part, mesh, tensors, named)
    several = mesh.pipeline.size > 1
    name = f"model-{mesh.pipeline.rank + 1:05d}-of-{mesh.pipeline.size:05d}.safetensors" if several else SINGLE

    def write() -> _Written:
        if mesh.data.rank or mesh.tensor.rank:
            return {}, 0
        save_file(tensors, folder / name, metadata={"format": "pt"})
        return dict.fromkeys(tensors, name), sum(tensor.nbytes for tensor in tensors.values())

    written = together(write, mesh.saving)
    together(lambda: _write_index(folder, written) if mesh.is_main and several else None, mesh.saving)


def _collect(decoder: Decoder, mesh: ParallelMesh, tensors: dict[str, torch.Tensor], named: Named) -> None:
    """Add what this stage alone writes, in the family's form, on the first rank of each tensor group."""
    places = WeightMap(decoder.arch)
    for name, whole in _gathered(decoder, mesh, named):
        if mesh.tensor.rank != 0:
            continue
        shape = tuple(whole.shape)
        location = places.locate(name, shape)
        if location.tensor not in tensors:
            tensors[location.tensor] = torch.empty(location.file_shape(shape), dtype=whole.dtype)
        for rows, region in location.regions(TensorLayout(), shape):
            tensors[location.tensor][region].copy_(whole[rows].T if location.transposed else whole[rows])


def _gathered(decoder: Decoder, mesh: ParallelMesh, named: Named) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole tensor) of everything on this stage that no other stage writes."""
    for name, local, layout in named(decoder):
        if name == "head.weight" and decoder.holds_tied_copy:
            continue
        yield name, gather_whole(local.detach(), layout, mesh)


def gather_whole(local: torch.Tensor, layout: TensorLayout, mesh: ParallelMesh) -> torch.Tensor:
    """The global tensor on every tensor-parallel rank: copies side by side, padding cut off. One all-gather at most."""
    if layout.dim is None or layout.copies == mesh.tensor.size:
        return layout.valid_part(local)
    parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(mesh.tensor.size)]
    dist.all_gather(parts, local.contiguous(), group=mesh.tensor.group)
    whole = torch.cat(parts[:: layout.copies], dim=layout.dim)
    return whole.narrow(layout.dim, 0, layout.size)


def _write_index(folder: Path, written: list[_Written]) -> None:
    weight_map = {name: file for names, _ in written for name, file in names.items()}
    index = {"metadata": {"total_size": sum(size for _, size in written)}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")
