"""One rank's file of a checkpoint: safetensors, as torch.distributed.checkpoint's Hugging Face writer makes them.

That writer turns the whole file into bytes first, twice, and holds the interpreter's lock meanwhile: no kernel of the
training beside it is launched then and no sign of life is given, for seconds where the file has gigabytes. Here each
tensor's memory goes to the file as it is, in calls that hold no lock.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from megaokd.checkpoint.slices import GlobalSlice

_DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}
_ALIGNED = 8
"""The header ends at a multiple of this."""


def shard_name(rank: int) -> str:
    """The library's name for a rank's only file; it numbers ranks from 1."""
    return f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"


def write_shard(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write host tensors to `path`, synchronised to disk, with the place of each in its global tensor.

    Raises:
        OSError: no room, for instance.
    """
    # As safetensors orders them, so that each begins at a multiple of its numbers' size.
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    path.parent.mkdir(parents=True, exist_ok=True)  # on a shared file system it may not be seen here yet
    with path.open("wb") as file:
        header = json.dumps(_header(ordered)).encode()
        header += b" " * (-len(header) % _ALIGNED)
        file.write(len(header).to_bytes(8, "little") + header)
        for tensor in ordered.values():
            file.write(_plain(tensor).contiguous().flatten().view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: Mapping[str, torch.Tensor]) -> dict[str, object]:
    offsets = {
        name: {"saved_offsets": list(tensor.offsets) if isinstance(tensor, GlobalSlice) else [0] * tensor.ndim}
        for name, tensor in tensors.items()
    }
    # The metadata of HuggingFaceStorageWriter, which HuggingFaceStorageReader looks for.
    metadata = {"DCP_SHARDING_INFO": json.dumps(offsets), "DCP_VERSION": "1.0", "format": "pt"}
    header: dict[str, object] = {"__metadata__": metadata}
    start = 0
    for name, tensor in tensors.items():
        plain = _plain(tensor)
        end = start + plain.nbytes
        header[name] = {"dtype": _DTYPES[plain.dtype], "shape": list(plain.shape), "data_offsets": [start, end]}
        start = end
    return header


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.plain() if isinstance(tensor, GlobalSlice) else tensor
