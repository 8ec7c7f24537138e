"""A Hugging Face `config.json` to our architecture and back. What we do not build is refused by name, never ignored."""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from megaokd.errors import UserError
from megaokd.models.architecture import DecoderArchitecture

# config.json key -> our field.
_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tied_head",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "initializer_range": "initializer_range",
    "max_position_embeddings": "max_positions",
}
# Keys that must have this value if they are there.
_FIXED: dict[str, Any] = {"model_type": "llama", "hidden_act": "silu", "attention_dropout": 0.0}
# Keys that do not change what the model computes in training.
_HARMLESS = {
    "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "pretraining_tp",
    "transformers_version", "use_cache", "_name_or_path", "rope_theta", "rope_scaling", "rope_parameters",
}  # fmt: skip
_LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 2048}


def read_architecture(folder: str | Path) -> DecoderArchitecture:
    """Read FOLDER/config.json.

    Raises:
        UserError: no such file, not a Llama, or a field that we do not build.
    """
    path = Path(folder) / "config.json"
    values = read_json_object(path)
    for key, expected in _FIXED.items():
        if values.get(key, expected) != expected:
            raise UserError(f"{path}: {key}={values[key]!r} is not supported; only {expected!r} is")
    unknown = [key for key in values if key not in _FIELDS and key not in _FIXED and key not in _HARMLESS]
    if unknown:
        raise UserError(f"{path}: the field {unknown[0]!r} ({values[unknown[0]]!r}) is not supported")
    fields = {ours: values[theirs] for theirs, ours in _FIELDS.items() if values.get(theirs) is not None}
    for theirs, default in _LLAMA_DEFAULTS.items():
        fields.setdefault(_FIELDS[theirs], default)
    fields.setdefault("num_kv_heads", fields.get("num_heads"))
    fields["rope_theta"] = _rope_theta(values, path)
    missing = {"vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size"} - fields.keys()
    if missing:
        raise UserError(f"{path}: {', '.join(sorted(missing))} missing")
    if "head_dim" not in fields and all(isinstance(fields[key], int) for key in ("hidden_size", "num_heads")):
        fields["head_dim"] = fields["hidden_size"] // fields["num_heads"]
    try:
        arch = TypeAdapter(DecoderArchitecture).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {first['loc'][0]} = {first['input']!r}: {first['msg']}") from None
    arch.check(str(path))
    return arch


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file of a Hugging Face folder that must hold an object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a Hugging Face model folder") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: holds a {type(values).__name__}, expected an object")
    return values


def _rope_theta(values: dict[str, Any], path: Path) -> float:
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{path}: rope_type={kind!r} is not supported; only 'default' is")
    return float(rope.get("rope_theta", values.get("rope_theta", 10000.0)))


def huggingface_config(
    arch: DecoderArchitecture, *, bos_token_id: int | None, eos_token_id: int | None
) -> dict[str, Any]:
    """The config.json of an exported model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "dtype": "float32",
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "rope_parameters": {"rope_theta": arch.rope_theta, "rope_type": "default"},
        **{theirs: getattr(arch, ours) for theirs, ours in _FIELDS.items()},
    }
