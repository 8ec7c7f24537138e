"""The moved teacher in Hugging Face's forms: its online modules as a PEFT adapter, or merged into its weights.

A file's matrix may hold several of our projections (q, k and v in one). PEFT knows one module a matrix, so theirs are
stacked: the A's below one another, the B's on the diagonal of a larger B, with alpha grown as the rank has.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megaokd.config import Config
from megaokd.distill.low_rank import LowRankAdapter
from megaokd.errors import UserError
from megaokd.export import copy_model_files, write_json
from megaokd.files import make_empty
from megaokd.mesh import ParallelMesh
from megaokd.models.decoder import Decoder
from megaokd.models.huggingface_weights import export_weights, gather_whole
from megaokd.models.weight_map import Location, WeightMap
from megaokd.parallel.layout import TensorLayout


@dataclass(frozen=True)
class FileAdapter:
    """The adapter of one matrix of a model folder: scale * B A with scale = alpha / rank."""

    down: torch.Tensor
    """A, [rank, in]."""
    up: torch.Tensor
    """B, [out, rank]; out as in the folder."""
    scale: float
    transposed: bool
    """The folder stores this matrix as [in, out]."""

    @property
    def rank(self) -> int:
        """Rows of A."""
        return self.down.shape[0]

    @property
    def alpha(self) -> float:
        """What PEFT divides by the rank."""
        return self.scale * self.rank


def check_teacher_export(config: Config) -> None:
    """Refuse to promise a merged teacher where nothing can be merged."""
    if not config.checkpoint.export_merged_teacher:
        return
    if config.teacher.path is None or config.teacher.online is None:
        raise UserError(
            "checkpoint.export_merged_teacher needs a teacher with online modules (teacher.path, teacher.online); "
            "without modules the teacher is still the folder that it was read from"
        )
    if config.teacher.online.kind != "lora":
        raise UserError(
            f"checkpoint.export_merged_teacher needs teacher.online.kind=lora, not {config.teacher.online.kind}: a "
            "bottleneck is not linear, so no weights of the teacher can take it up"
        )
    if config.teacher.cache is not None:
        raise UserError(
            "checkpoint.export_merged_teacher needs all of the teacher's weights, and with teacher.cache the lower "
            "ones are not loaded; leave it out and use `megaokd export --what merged-teacher` after the run"
        )


def export_adapter(teachers: list[Decoder], source: str, folder: Path, mesh: ParallelMesh) -> None:
    """Write FOLDER/adapter_config.json and adapter_model.safetensors (fp32). Collective over the world.

    `peft.PeftModel.from_pretrained(teacher, FOLDER)` is then the adapted teacher. One all-gather a split matrix over
    the tensor group, one of all modules over the pipeline group, through host memory.

    teachers: the slices on this rank. source: the original teacher's folder, named in the adapter's configuration.
    """
    if mesh.data.rank == 0:
        own: dict[str, FileAdapter] = {}
        for teacher in teachers:
            own |= _file_adapters(teacher, mesh)
        if mesh.tensor.rank == 0:
            stages: list[Any] = [None] * mesh.pipeline.size
            dist.all_gather_object(stages, own, group=mesh.pipeline.group)
            if mesh.pipeline.rank == 0:
                _write_adapter({name: item for stage in stages for name, item in stage.items()}, source, folder)
    dist.barrier(mesh.saving)


def _file_adapters(teacher: Decoder, mesh: ParallelMesh) -> dict[str, FileAdapter]:
    """The adapters of this stage by the name of the folder's matrix."""
    places = WeightMap(teacher.arch)
    stacks: defaultdict[str, list[tuple[Location, torch.Tensor, torch.Tensor]]] = defaultdict(list)
    scale = 1.0
    for name, adapter in named_adapters(teacher):
        layouts = adapter.layouts()
        lora_a = gather_whole(adapter.lora_A.detach(), layouts["lora_A"], mesh).cpu()
        lora_b = gather_whole(adapter.lora_B.detach(), layouts["lora_B"], mesh).cpu()
        scale = adapter.scale
        location = places.locate(f"{name}.weight", (len(lora_b), lora_a.shape[1]))
        stacks[location.tensor.removesuffix(".weight")].append((location, lora_a, lora_b))
    return {name: _stacked(parts, scale) for name, parts in stacks.items()}


def _stacked(parts: list[tuple[Location, torch.Tensor, torch.Tensor]], scale: float) -> FileAdapter:
    whole_a = torch.cat([lora_a for _, lora_a, _ in parts])
    whole_b = whole_a.new_zeros(parts[0][0].rows, len(whole_a))
    column = 0
    for location, lora_a, lora_b in parts:
        columns = slice(column, column + len(lora_a))
        for rows, region in replace(location, transposed=False).regions(TensorLayout(), tuple(lora_b.shape)):
            whole_b[region[0], columns] = lora_b[rows]
        column = columns.stop
    return FileAdapter(whole_a, whole_b, scale, parts[0][0].transposed)


def _write_adapter(adapters: dict[str, FileAdapter], source: str, folder: Path) -> None:
    smallest = min(adapters.values(), key=lambda item: item.rank)
    tensors = {}
    for name, item in adapters.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = item.down
        tensors[f"base_model.model.{name}.lora_B.weight"] = item.up
    stacked = {name: item for name, item in adapters.items() if item.rank != smallest.rank}
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(Path(source).resolve()),  # peft looks for it from wherever it is used
        "inference_mode": True,
        "r": smallest.rank,
        "lora_alpha": smallest.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(item.transposed for item in adapters.values()),
        "target_modules": sorted(adapters),
        "rank_pattern": {name: item.rank for name, item in stacked.items()},
        "alpha_pattern": {name: item.alpha for name, item in stacked.items()},
    }
    make_empty(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    write_json(folder / "adapter_config.json", values)


def export_merged_teacher(
    teachers: list[Decoder], source: str, folder: Path, mesh: ParallelMesh, *, dtype: str
) -> None:
    """Write the teacher with its modules merged as a Hugging Face folder; `dtype` is the one its weights are held in.

    Collective over the world; no collective beside those of `export_weights`: a product of two shards is a shard.
    """
    if mesh.is_main:
        make_empty(folder)
        copy_model_files(Path(source), folder, dtype=dtype)
    dist.barrier(mesh.saving)
    export_weights(teachers, folder, mesh, named=merged_layouts)


@torch.no_grad()
def merged_layouts(teacher: Decoder) -> Iterator[tuple[str, torch.Tensor, TensorLayout]]:
    """`Decoder.named_layouts` with every module's product added to its matrix; modules themselves are left out."""
    adapters = {f"{name}.weight": adapter for name, adapter in named_adapters(teacher)}
    own = {id(parameter) for adapter in adapters.values() for parameter in adapter.parameters()}
    for name, parameter, layout in teacher.named_layouts():
        if name in adapters:
            adapter = adapters[name]
            yield name, (parameter + adapter.scale * (adapter.lora_B @ adapter.lora_A)).to(parameter.dtype), layout
        elif id(parameter) not in own:
            yield name, parameter, layout


def named_adapters(teacher: Decoder) -> Iterator[tuple[str, LowRankAdapter]]:
    """(name of the linear layer, its module) of this stage."""
    for name, module in teacher.named_modules():
        if isinstance(module, LowRankAdapter):
            yield name.rpartition(".")[0], module
