"""LoRA adapters as `peft` writes them, added to the weights of one of our decoders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from megaokd.errors import UserError
from megaokd.models.decoder import Decoder
from megaokd.models.weight_map import WeightMap

_PREFIX = "base_model.model."
_UNKNOWN = {"use_dora": False, "use_rslora": False, "bias": "none", "modules_to_save": None, "peft_type": "LORA"}
"""Options that change what an adapter means, and the one value that is read."""


@dataclass(frozen=True)
class FolderAdapter:
    """The products of an adapter, by the name of the model folder's matrix: fp32, [out, in]."""

    folder: Path
    products: dict[str, torch.Tensor]

    @classmethod
    def read(cls, folder: Path) -> "FolderAdapter":
        """Read adapter_config.json and adapter_model.safetensors.

        Raises:
            UserError: they are damaged, or hold something else than plain LoRA.
        """
        try:
            options = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "adapter_model.safetensors")
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"{folder}: the adapter cannot be read ({error})") from None
        for name, value in _UNKNOWN.items():
            if options.get(name, value) != value:
                raise UserError(f"{folder}: an adapter with {name}={options[name]!r} is not supported, only plain LoRA")
        products = {}
        for name, lora_a in tensors.items():
            matrix = name.removeprefix(_PREFIX).removesuffix(".lora_A.weight")
            lora_b = tensors.get(f"{_PREFIX}{matrix}.lora_B.weight")
            if name == f"{_PREFIX}{matrix}.lora_A.weight" and lora_b is not None:
                products[f"{matrix}.weight"] = _scale(options, matrix) * (lora_b.float() @ lora_a.float())
        if 2 * len(products) != len(tensors):
            raise UserError(f"{folder}: adapter_model.safetensors holds more than pairs of lora_A and lora_B")
        return cls(folder, products)

    @torch.no_grad()
    def merge_into(self, decoder: Decoder) -> None:
        """Add this rank's part of every product to its matrix. No collective.

        Raises:
            UserError: a matrix that the model does not have, or one of another shape.
        """
        places, left = WeightMap(decoder.arch), set(self.products)
        for name, parameter, layout in decoder.named_layouts():
            shape = layout.global_shape(parameter.shape)
            location = places.locate(name, shape)
            product = self.products.get(location.tensor)
            if product is None:
                continue
            left.discard(location.tensor)
            stored = product.T if location.transposed else product
            if stored.shape != location.file_shape(shape):
                raise UserError(f"{self.folder}: {location.tensor} has shape {list(stored.shape)}, not the model's")
            target = layout.valid_part(parameter)
            for rows, region in location.regions(layout, shape):
                part = stored[region]
                target[rows] += (part.T if location.transposed else part).to(target)
        if left:
            raise UserError(f"{self.folder}: the model has no {sorted(left)[0]}; the adapter belongs to another one")


def _scale(options: dict[str, Any], matrix: str) -> float:
    """alpha / rank; an exception for some matrices is named by the end of their names."""

    def option(name: str, patterns: str) -> float:
        found = [value for key, value in (options.get(patterns) or {}).items() if f".{matrix}".endswith(f".{key}")]
        return float(found[0] if found else options[name])

    return option("lora_alpha", "alpha_pattern") / option("r", "rank_pattern")
