"""Weights from and to Hugging Face folders, slice by slice: a rank reads only what it holds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from megaokd.errors import UserError
from megaokd.mesh import ParallelMesh
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder
from megaokd.models.huggingface_config import read_json_object
from megaokd.parallel.layout import TensorLayout

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def global_name(name: str, *, tied_head: bool) -> str:
    """Our parameter name -> Hugging Face's; a tied head is its embedding."""
    if name == "head.weight":
        return "model.embed_tokens.weight" if tied_head else "lm_head.weight"
    return f"model.{name}"


class WeightFolder:
    """The safetensors files of a model folder: names, shapes and slices."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._files = self._find_files()

    @property
    def files(self) -> list[Path]:
        """The files that hold the weights, in a fixed order."""
        return sorted({self.folder / name for name in self._files.values()})

    @property
    def names(self) -> set[str]:
        """The tensors that the folder holds."""
        return set(self._files)

    def read(self, name: str, layout: TensorLayout, expected: tuple[int, ...]) -> torch.Tensor:
        """This rank's valid slice of a tensor, whose whole shape must be `expected`."""
        if name not in self._files:
            raise UserError(f"{self.folder}: the tensor {name!r} is missing")
        path = self.folder / self._files[name]
        with _open(path) as file:
            whole = file.get_slice(name)
            shape = tuple(whole.get_shape())
            if shape != expected:
                raise UserError(f"{path}: {name} has shape {list(shape)}, config.json says {list(expected)}")
            if layout.dim is None:
                result: torch.Tensor = whole[:]
                return result
            start = min(layout.start, layout.size)
            cut = slice(start, start + layout.valid)
            part: torch.Tensor = whole[cut] if layout.dim == 0 else whole[:, cut]
            return part

    def _find_files(self) -> dict[str, str]:
        index = self.folder / INDEX
        if index.exists():
            weight_map = read_json_object(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{index}: has no weight_map from tensors to files")
            return weight_map
        single = self.folder / SINGLE
        if not single.exists():
            raise UserError(f"{self.folder}: neither {SINGLE} nor {INDEX} is there; only safetensors are read")
        with _open(single) as file:
            return dict.fromkeys(file.keys(), SINGLE)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({error})") from None


@torch.no_grad()
def load_decoder(decoder: Decoder, folder: str | Path) -> None:
    """Fill this rank's slice of a decoder; the weights keep the decoder's dtype.

    Raises:
        UserError: a tensor is missing, has another shape, or is one that the model does not have.
    """
    weights = WeightFolder(folder)
    for name, parameter, layout in decoder.named_layouts():
        source = global_name(name, tied_head=decoder.arch.tied_head)
        parameter.zero_()
        layout.valid_part(parameter).copy_(weights.read(source, layout, layout.global_shape(parameter.shape)))
    extra = sorted(weights.names - _known_names(decoder.arch))
    if extra:
        raise UserError(
            f"{weights.folder}: the tensor {extra[0]!r} has no place in the model that config.json describes"
        )


def _known_names(arch: DecoderArchitecture) -> set[str]:
    """Every tensor that a folder of this architecture may hold; some writers add rotary tables and a tied head."""
    norms = ["input_layernorm.weight", "post_attention_layernorm.weight"]
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    mlp = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    biased = [*(attention if arch.attention_bias else []), *(mlp if arch.mlp_bias else [])]
    in_layer = [*norms, *(f"{name}.weight" for name in attention + mlp), *(f"{name}.bias" for name in biased)]
    in_layer.append("self_attn.rotary_emb.inv_freq")
    names = {f"model.layers.{layer}.{name}" for layer in range(arch.num_layers) for name in in_layer}
    return names | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


def export_weights(parts: list[Decoder], folder: Path, mesh: ParallelMesh) -> None:
    """Write the whole model as safetensors, one file a pipeline rank and an index where there are several.

    Collective over the world; the ranks with data rank 0 gather over their tensor group, one tensor at a time, and the
    first of a tensor group holds its stage's tensors in host memory until the file is written.
    """
    if mesh.data.rank == 0:
        tensors = {}
        for name, whole in (item for part in parts for item in _gathered(part, mesh)):
            if mesh.tensor.rank == 0:
                tensors[name] = whole.cpu().contiguous()
        if mesh.tensor.rank == 0:
            last = mesh.pipeline.size
            name = SINGLE if last == 1 else f"model-{mesh.pipeline.rank + 1:05d}-of-{last:05d}.safetensors"
            save_file(tensors, folder / name, metadata={"format": "pt"})
            if last > 1:
                _write_index(folder, name, tensors, mesh)
    dist.barrier()


def _gathered(decoder: Decoder, mesh: ParallelMesh) -> Iterator[tuple[str, torch.Tensor]]:
    """(Hugging Face name, whole tensor) of every parameter of this stage that no other stage writes."""
    for name, parameter, layout in decoder.named_layouts():
        if name == "head.weight" and decoder.holds_tied_copy:
            continue
        yield global_name(name, tied_head=decoder.arch.tied_head), gather_whole(parameter.detach(), layout, mesh)


def gather_whole(local: torch.Tensor, layout: TensorLayout, mesh: ParallelMesh) -> torch.Tensor:
    """The global tensor on every tensor-parallel rank: copies side by side, padding cut off. One all-gather."""
    if layout.dim is None or mesh.tensor.size == 1:
        return layout.valid_part(local)
    parts = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(mesh.tensor.size)]
    dist.all_gather(parts, local.contiguous(), group=mesh.tensor.group)
    whole = torch.cat(parts[:: layout.copies], dim=layout.dim)
    return whole.narrow(layout.dim, 0, layout.size)


def _write_index(folder: Path, file_name: str, tensors: dict[str, torch.Tensor], mesh: ParallelMesh) -> None:
    """Collective over the pipeline group: the first stage writes the index of all files."""
    own = dict.fromkeys(tensors, file_name)
    everything: list[Any] = [None] * mesh.pipeline.size
    dist.all_gather_object(everything, (own, sum(t.nbytes for t in tensors.values())), group=mesh.pipeline.group)
    if mesh.pipeline.rank == 0:
        weight_map = {name: file for names, _ in everything for name, file in names.items()}
        index = {"metadata": {"total_size": sum(size for _, size in everything)}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")
