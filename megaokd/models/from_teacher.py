"""A student that starts from weights of its teacher: some of the layers, and of each width the first channels.

Layers are copied whole. Of a narrower model each tensor is the corner of the teacher's: the first channels of the
residual stream and of the MLP, the first KV heads, and of each the first of its query heads, so that a query head
keeps the keys it was trained with. Nothing is rescaled or chosen by importance; training repairs the rest.
"""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import torch

from megaokd import config
from megaokd.errors import UserError
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.decoder import Decoder
from megaokd.models.families import FAMILIES
from megaokd.models.huggingface_weights import FolderReader
from megaokd.models.weight_map import whole_shapes
from megaokd.parallel.layout import TensorLayout


def chosen_layers(options: config.FromTeacher, num_layers: int) -> tuple[int, ...]:
    """The teacher's layers that the student gets, lowest first. A count is spread evenly, the first and last included.

    Raises:
        UserError: more layers than there are, or a list that is not ascending.
    """
    wanted = options.layers if options.layers is not None else num_layers
    if isinstance(wanted, int):
        if wanted > num_layers:
            raise UserError(f"student.from_teacher.layers={wanted}, but the teacher has only {num_layers} layers")
        return tuple(round(index * (num_layers - 1) / max(wanted - 1, 1)) for index in range(wanted))
    if not wanted or wanted[-1] >= num_layers or any(a >= b for a, b in pairwise(wanted)):
        raise UserError(
            f"student.from_teacher.layers={list(wanted)} must be ascending numbers from 0 to {num_layers - 1}, the "
            "teacher's layers"
        )
    return tuple(wanted)


def student_architecture(options: config.FromTeacher, teacher: DecoderArchitecture) -> DecoderArchitecture:
    """The teacher's architecture with fewer layers and smaller widths; its heads keep their size, dropout is 0.

    Raises:
        UserError: sizes that are not a part of the teacher's, or that its family cannot describe.
    """
    layers = chosen_layers(options, teacher.num_layers)
    windows = tuple(teacher.windows[layer] for layer in layers) if teacher.windows else ()
    group = teacher.num_heads // teacher.num_kv_heads
    heads = options.num_heads or teacher.num_heads
    student = replace(
        teacher,
        num_layers=len(layers),
        hidden_size=options.hidden_size or teacher.hidden_size,
        num_heads=heads,
        num_kv_heads=options.num_kv_heads or max(heads // group, 1),
        intermediate_size=options.intermediate_size or teacher.intermediate_size,
        windows=windows if any(windows) else (),
        dropout=0.0,
    )
    for name in ("hidden_size", "num_heads", "num_kv_heads", "intermediate_size"):
        size, whole = getattr(student, name), getattr(teacher, name)
        if size > whole:
            raise UserError(f"student.from_teacher.{name}={size}, but the teacher has only {whole}")
    student.check("student.from_teacher")
    _check_heads(student, teacher)
    return student


def _check_heads(student: DecoderArchitecture, teacher: DecoderArchitecture) -> None:
    """Refuse heads that the teacher cannot give, or that its family's config.json cannot describe."""
    group, whole = (arch.num_heads // arch.num_kv_heads for arch in (student, teacher))
    described = FAMILIES[teacher.family].fields.values()
    if group > whole or (group != 1 and "num_kv_heads" not in described):
        raise UserError(
            f"student.from_teacher: num_heads={student.num_heads} and num_kv_heads={student.num_kv_heads} are {group} "
            f"query heads a KV head, but the teacher has {whole}; give both, with at most {whole}"
        )
    if "head_dim" not in described and student.hidden_size != student.num_heads * student.head_dim:
        raise UserError(
            f"student.from_teacher: hidden_size={student.hidden_size} must be num_heads={student.num_heads} times "
            f"{student.head_dim}, the size of the teacher's heads, in a {teacher.family} model"
        )


@torch.no_grad()
def load_from_teacher(
    decoder: Decoder, folder: str | Path, teacher: DecoderArchitecture, layers: tuple[int, ...]
) -> None:
    """Fill this rank's slice of a student with its part of the teacher's weights.

    Beside the slice, the rows of one teacher tensor that the slice takes from are in memory, over all its columns.

    Raises:
        UserError: see `load_decoder`.
    """
    reader = FolderReader(folder, teacher)
    shapes = whole_shapes(teacher)
    for name, parameter, layout in decoder.named_layouts():
        parameter.zero_()
        if not layout.is_held:
            continue
        source = _teacher_name(name, layers)
        shape = shapes["embed_tokens.weight" if source not in shapes else source]
        rows, *columns = (
            _teacher_indices(name, dim, size, decoder.arch, teacher)[layout.held(dim)]
            for dim, size in enumerate(layout.global_shape(parameter.shape))
        )
        first, count = int(rows.min()), int(rows.max() - rows.min()) + 1
        part = torch.empty(count, *shape[1:], dtype=parameter.dtype, device=parameter.device)
        reader.read_into(part, source, TensorLayout(dim=0, start=first, length=count, size=shape[0]), shape)
        part = part.index_select(0, (rows - first).to(part.device))
        for index in columns:
            part = part.index_select(1, index.to(part.device))
        layout.valid_part(parameter).copy_(part)


def _teacher_name(name: str, layers: tuple[int, ...]) -> str:
    """A student's parameter -> the teacher's that it starts from."""
    if not name.startswith("layers."):
        return name
    _, layer, rest = name.split(".", 2)
    return f"layers.{layers[int(layer)]}.{rest}"


def _teacher_indices(
    name: str, dim: int, size: int, student: DecoderArchitecture, teacher: DecoderArchitecture
) -> torch.Tensor:
    """Where the student's `size` indices of a dimension lie in the teacher's tensor, [size] int64."""
    module = name.split(".")[-2]
    if (module, dim) not in (("q_proj", 0), ("o_proj", 1)):
        return torch.arange(size)
    kept, whole = (arch.num_heads // arch.num_kv_heads for arch in (student, teacher))
    heads = torch.arange(student.num_heads)
    heads = heads // kept * whole + heads % kept
    return (heads.unsqueeze(1) * teacher.head_dim + torch.arange(teacher.head_dim)).flatten()
