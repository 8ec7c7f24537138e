"""Gemma 3, text: norms in front of and behind attention and MLP, norms of heads, two kinds of rotation, windows.

Gemma 2 is not here: it bounds scores and logits by a tanh, so attention kernels and the distillation loss would differ.
"""

from dataclasses import replace

from megaokd.models.families.llama import QWEN3

GEMMA3_TEXT = replace(
    QWEN3,
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    layers={
        **QWEN3.layers,
        "attention_output_norm": "post_attention_layernorm",
        "post_attention_layernorm": "pre_feedforward_layernorm",
        "mlp_output_norm": "post_feedforward_layernorm",
    },
    fields={
        **{key: ours for key, ours in QWEN3.fields.items() if key != "hidden_act"},
        "hidden_activation": "activation",
        "query_pre_attn_scalar": "query_pre_attn_scalar",
    },
    constants={"qk_norm": True, "norm_offset": 1.0, "output_norms": True, "scaled_embeddings": True},
    required={
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    neutral=frozenset(
        {"rope_parameters", "rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window",
         "sliding_window_pattern", "_sliding_window_pattern", "layer_types", "cache_implementation"}
    ),
    buffers=(),
)  # fmt: skip
