"""Llama, and what differs from it in a few fields: Mistral, Qwen2, Qwen3, Phi-3."""

from dataclasses import replace

from megaokd.models.families.family import Family, shared

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "hidden_act": "activation",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tied_head",
    "initializer_range": "initializer_range",
    "max_position_embeddings": "max_positions",
}
_ROPE = frozenset({"rope_parameters", "rope_theta", "rope_scaling", "partial_rotary_factor"})
_WINDOWS = frozenset({"sliding_window", "use_sliding_window", "max_window_layers", "layer_types"})
_ATTENTION = {f"self_attn.{name}": f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
_NORMS = {name: name for name in ("input_layernorm", "post_attention_layernorm")}
_MLP = {f"mlp.{name}": f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    top={"embed_tokens": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
    layer_prefix="model.layers.{}.",
    layers={**_ATTENTION, **_NORMS, **_MLP},
    fields={**_SIZES, "attention_bias": ("qkv_bias", "output_bias"), "mlp_bias": "mlp_bias"},
    required={"rope_interleaved": False},
    neutral=_ROPE | {"pretraining_tp", "is_llama_config"},
    buffers=("self_attn.rotary_emb.inv_freq",),
)

MISTRAL = replace(
    LLAMA,
    model_type="mistral",
    architecture="MistralForCausalLM",
    fields=_SIZES,
    required={},
    neutral=_ROPE | {"sliding_window"},
)

QWEN2 = replace(
    LLAMA,
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    fields=_SIZES,
    constants={"qkv_bias": True},
    required={"use_mrope": False},
    neutral=_ROPE | _WINDOWS,
)

QWEN3 = replace(
    LLAMA,
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    layers={**LLAMA.layers, "self_attn.q_norm": "self_attn.q_norm", "self_attn.k_norm": "self_attn.k_norm"},
    fields={**_SIZES, "attention_bias": ("qkv_bias", "output_bias")},
    constants={"qk_norm": True},
    required={},
    neutral=_ROPE | _WINDOWS,
)

_PHI3_QKV = shared("self_attn.qkv_proj", "q_proj", "k_proj", "v_proj")
_PHI3_MLP = shared("mlp.gate_up_proj", "gate_proj", "up_proj")
PHI3 = replace(
    LLAMA,
    model_type="phi3",
    architecture="Phi3ForCausalLM",
    layers={
        **LLAMA.layers,
        **{f"self_attn.{name}": place for name, place in _PHI3_QKV.items()},
        **{f"mlp.{name}": place for name, place in _PHI3_MLP.items()},
    },
    fields=_SIZES,
    required={
        "attention_bias": False,
        "mlp_bias": False,
        "lm_head_bias": False,
        "full_attn_mod": 1,
        "interpolate_factor": 1,
    },
    dropouts=("attention_dropout", "embd_pdrop", "resid_pdrop"),
    neutral=_ROPE | {"sliding_window", "original_max_position_embeddings"},
)
