"""A Hugging Face `config.json` to our architecture and back. What we do not build is refused by name, never ignored.

`transformers` itself fills in the defaults and the older spellings of a family's keys; what it understands is what we
build, or refuse.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from transformers import CONFIG_MAPPING, PretrainedConfig

from megaokd.errors import UserError
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.families import FAMILIES, Family
from megaokd.models.huggingface_rope import read_rotary

# Keys that change neither what a model of any family computes nor the shape of its weights.
NEUTRAL = {
    "_attn_implementation_autoset", "_name_or_path", "architectures", "auto_map", "bos_token_id",
    "decoder_start_token_id", "dtype", "eos_token_id", "finetuning_task", "id2label", "label2id", "model_type",
    "output_attentions", "output_hidden_states", "pad_token_id", "problem_type", "return_dict",
    "task_specific_params", "tokenizer_class", "torch_dtype", "transformers.js_config", "transformers_version",
    "unk_token_id", "use_cache",
    # Defaults of sampling, which older versions kept here.
    "do_sample", "length_penalty", "max_length", "min_length", "num_beams", "repetition_penalty", "temperature",
    "top_k", "top_p",
}  # fmt: skip
_REQUIRED: dict[str, Any] = {"is_encoder_decoder": False, "is_decoder": False, "chunk_size_feed_forward": 0}
_SIZES = {"vocab_size", "hidden_size", "num_layers", "num_heads"}
_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
}  # fmt: skip


def read_architecture(folder: str | Path) -> DecoderArchitecture:
    """Read FOLDER/config.json.

    Raises:
        UserError: no such file, a family that is not supported, or a field that we do not build.
    """
    path = Path(folder) / "config.json"
    values = read_json_object(path)
    family = FAMILIES.get(values.get("model_type", ""))
    if family is None:
        raise UserError(
            f"{path}: model_type={values.get('model_type')!r} is not supported; these are: {', '.join(FAMILIES)}"
        )
    _check_keys(family, values, path)
    read = _read_with_transformers(family, values, path)
    _check_values(family, read, path)
    fields = {**family.constants, **_fields(family, read, path), "family": family.model_type}
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


def _check_keys(family: Family, values: dict[str, Any], path: Path) -> None:
    """Refuse a key that the family does not know, and a file without the sizes."""
    known = NEUTRAL | _REQUIRED.keys() | family.fields.keys() | family.required.keys() | family.equal.keys()
    unknown = [key for key in values if key not in known | family.neutral | set(family.dropouts)]
    if unknown:
        raise UserError(
            f"{path}: the field {unknown[0]!r} ({values[unknown[0]]!r}) is not supported in a {family.model_type} model"
        )
    missing = [key for key, ours in family.fields.items() if ours in _SIZES and values.get(key) is None]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)} missing")


def _read_with_transformers(family: Family, values: dict[str, Any], path: Path) -> PretrainedConfig:
    try:
        read: PretrainedConfig = CONFIG_MAPPING[family.model_type].from_dict(dict(values))
    except Exception as error:  # transformers raises whatever its validators meet
        raise UserError(f"{path}: transformers refuses it ({' '.join(str(error).split())})") from None
    return read


def _check_values(family: Family, read: PretrainedConfig, path: Path) -> None:
    for key, expected in {**_REQUIRED, **family.required}.items():
        value = getattr(read, key, expected)
        if value != expected:
            raise UserError(f"{path}: {key}={value!r} is not supported; only {expected!r} is")
    for key, other in family.equal.items():
        value, expected = getattr(read, key), getattr(read, other)
        if value != expected:
            raise UserError(f"{path}: {key}={value!r} is not supported; it must equal {other}={expected!r}")


def _fields(family: Family, read: PretrainedConfig, path: Path) -> dict[str, Any]:
    """Fields of the architecture, their defaults filled in."""
    fields: dict[str, Any] = {}
    for key, ours in family.fields.items():
        value = getattr(read, key, None)
        if value is not None:
            fields.update(dict.fromkeys((ours,) if isinstance(ours, str) else ours, value))
    activation = fields.pop("activation")
    if activation not in _ACTIVATIONS:
        raise UserError(f"{path}: the activation {activation!r} is not supported; these are: {', '.join(_ACTIVATIONS)}")
    fields["activation"] = _ACTIVATIONS[activation]
    fields.setdefault("num_kv_heads", fields["num_heads"])
    fields.setdefault("intermediate_size", 4 * fields["hidden_size"])  # GPT-2, where n_inner is null
    if "head_dim" not in fields:
        if fields["hidden_size"] % fields["num_heads"]:
            raise UserError(
                f"{path}: the hidden size {fields['hidden_size']} is not a multiple of the {fields['num_heads']} heads"
            )
        fields["head_dim"] = fields["hidden_size"] // fields["num_heads"]
    fields["dropout"] = max(getattr(read, key, None) or 0.0 for key in family.dropouts)
    fields["windows"] = _windows(read, path)
    rope = getattr(read, "rope_parameters", None)
    if rope is not None and "sliding_attention" in rope:
        fields["local_rotary"] = read_rotary(rope["sliding_attention"], read, fields["head_dim"], path)
        rope = rope["full_attention"]
    fields["rotary"] = None if rope is None else read_rotary(rope, read, fields["head_dim"], path)
    return fields


def _windows(read: PretrainedConfig, path: Path) -> tuple[int | None, ...]:
    """The window of each layer; empty where none has one."""
    kinds = getattr(read, "layer_types", None)
    window = getattr(read, "sliding_window", None)
    if kinds is None:
        return () if window is None else (window,) * read.num_hidden_layers
    other = set(kinds) - {"full_attention", "sliding_attention"}
    if other:
        raise UserError(f"{path}: layer_types with {sorted(other)[0]!r} are not supported")
    if len(kinds) != read.num_hidden_layers:
        raise UserError(f"{path}: layer_types names {len(kinds)} layers of {read.num_hidden_layers}")
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return windows if any(windows) else ()


def derived_config(folder: str | Path, arch: DecoderArchitecture) -> dict[str, Any]:
    """The config.json of a model of `arch` that was cut out of the one in `folder`; weights in fp32, no dropout."""
    path = Path(folder) / "config.json"
    values = read_json_object(path)
    family = FAMILIES[arch.family]
    read = _read_with_transformers(family, values, path)
    sizes = {"hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "head_dim"}
    changed = {key: getattr(arch, str(ours)) for key, ours in family.fields.items() if ours in sizes}
    changed |= {key: changed[other] for key, other in family.equal.items()}
    changed |= {key: 0.0 for key in family.dropouts if getattr(read, key, 0.0)}
    if "layer_types" in family.neutral:
        windows = arch.windows or (None,) * arch.num_layers
        changed["layer_types"] = ["full_attention" if window is None else "sliding_attention" for window in windows]
    values.pop("torch_dtype", None)
    return {**values, **changed, "dtype": "float32"}


def huggingface_config(
    arch: DecoderArchitecture, *, bos_token_id: int | None, eos_token_id: int | None
) -> dict[str, Any]:
    """The config.json of a Llama that did not come from a folder."""
    family = FAMILIES[arch.family]
    assert family.model_type == "llama"
    assert arch.rotary is not None
    assert arch.rotary.scaling is None
    fields = {theirs: ours if isinstance(ours, str) else ours[0] for theirs, ours in family.fields.items()}
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "attention_dropout": 0.0,
        "dtype": "float32",
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_id,
        "rope_parameters": {"rope_theta": arch.rotary.theta, "rope_type": "default"},
        **{theirs: getattr(arch, ours) for theirs, ours in fields.items()},
    }
