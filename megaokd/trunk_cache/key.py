"""What the numbers in a trunk cache depend on; another key is another folder, so nothing stale is ever read."""

from typing import Any

import torch

from megaokd.config import Config
from megaokd.files import json_sha256
from megaokd.mesh import ParallelMesh


def trunk_key(
    config: Config, mesh: ParallelMesh, *, teacher: str, data: str, trunk_layers: int, hidden_size: int, packed: bool
) -> dict[str, Any]:
    """The key, as JSON gives it back.

    teacher, data: hash of the teacher's files and fingerprint of the data set. Among the rest is whatever changes the
    last bits of a sum: dtypes, the attention's implementation, how a layer is split, the version of torch. Pipeline
    and data parallelism change nothing.
    """
    assert config.teacher.cache is not None
    return {
        "teacher": teacher,
        "data": data,
        "trunk_layers": trunk_layers,
        "hidden_size": hidden_size,
        "sequence_length": config.data.sequence_length,
        "dtype": config.teacher.cache.dtype,
        "teacher_dtype": config.teacher.dtype,
        "precision": config.train.precision,
        "attention": f"torch scaled_dot_product_attention on {mesh.device.type}{', masked' if packed else ''}",
        "torch": torch.__version__,
        "tensor": mesh.tensor.size,
        "sequence_parallel": config.parallel.sequence_parallel and mesh.tensor.size > 1,
    }


def folder_name(key: dict[str, Any]) -> str:
    """A name for the folder of a key."""
    return json_sha256(key)[:16]
