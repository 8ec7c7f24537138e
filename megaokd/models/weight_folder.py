"""The safetensors files of a model folder: names, shapes, slices. Nothing is read but what is asked for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from megaokd.errors import UserError
from megaokd.models.huggingface_config import read_json_object

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_FLOATS = {"F64", "F32", "F16", "BF16"}


class WeightFolder:
    """Which tensor lies in which file."""

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

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.folder / self._files[name]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, from the headers of the files.

        Raises:
            UserError: a file is missing or cut short, lacks a tensor that the index promises, holds one that the index
                does not know, or stores one in a type that is no floating-point number.
        """
        shapes = {}
        for path in self.files:
            promised = {name for name, file in self._files.items() if file == path.name}
            with open_weights(path) as file:
                held = set(file.keys())
                for name in sorted(promised ^ held):
                    problem = "is not there, but the index says so" if name in promised else "is not in the index"
                    raise UserError(f"{path}: the tensor {name!r} {problem}; copy the folder again")
                for name in sorted(held):
                    view = file.get_slice(name)
                    if view.get_dtype() not in _FLOATS:
                        raise UserError(f"{path}: {name} is stored as {view.get_dtype()}; expected one of {_FLOATS}")
                    shapes[name] = tuple(view.get_shape())
        return shapes

    def _find_files(self) -> dict[str, str]:
        index = self.folder / INDEX
        if index.exists():
            weight_map = read_json_object(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise UserError(f"{index}: has no weight_map from tensors to files")
            return weight_map
        single = self.folder / SINGLE
        if not single.exists():
            raise UserError(f"{self.folder}: neither {SINGLE} nor {INDEX} is there; {self._advice()}")
        with open_weights(single) as file:
            return dict.fromkeys(file.keys(), SINGLE)

    def _advice(self) -> str:
        """What to do about a folder without safetensors."""
        pickles = sorted(path.name for pattern in _PICKLES for path in self.folder.glob(pattern))
        if not pickles:
            return "only safetensors are read"
        return (
            f"{pickles[0]} is a pickle, which may run code when it is loaded and is not read. If you trust it, convert "
            "it: python -c \"import transformers; transformers.AutoModelForCausalLM.from_pretrained('"
            f"{self.folder}', dtype='auto').save_pretrained('{self.folder}')\""
        )


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """A safetensors file, its tensors still on disk; a `UserError` says what is wrong with it."""
    try:
        file = safe_open(path, "pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as safetensors ({_cut_tensor(path) or error})") from None
    with file:
        yield file


def _cut_tensor(path: Path) -> str | None:
    """Which tensor the end of a file cuts off; None where that is not what is wrong."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length < size else {}
        ends = {name: 8 + length + values["data_offsets"][1] for name, values in header.items() if name[:2] != "__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    cut = [name for name in sorted(ends, key=ends.__getitem__) if ends[name] > size]
    return f"cut short: {size} of {max(ends.values())} bytes, from the tensor {cut[0]!r} on" if cut else None


def read_region(file: Any, name: str, region: tuple[slice, ...]) -> torch.Tensor:
    """A region of a tensor of an open file: the only part of it that enters memory."""
    part: torch.Tensor = file.get_slice(name)[region]
    return part
