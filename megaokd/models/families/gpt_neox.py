"""GPT-NeoX and Pythia: attention and MLP side by side, rotation of a part of each head, interleaved projections."""

from megaokd.models.families.family import Family, shared

_QKV = shared("attention.query_key_value", "q_proj", "k_proj", "v_proj", interleaved=True)

GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    top={"embed_tokens": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "head": "embed_out"},
    layer_prefix="gpt_neox.layers.{}.",
    layers={
        "input_layernorm": "input_layernorm",
        **{f"self_attn.{name}": place for name, place in _QKV.items()},
        "self_attn.o_proj": "attention.dense",
        "post_attention_layernorm": "post_attention_layernorm",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    },
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_positions",
        "hidden_act": "activation",
        "layer_norm_eps": "norm_eps",
        "tie_word_embeddings": "tied_head",
        "attention_bias": ("qkv_bias", "output_bias"),
        "initializer_range": "initializer_range",
        "use_parallel_residual": "parallel_residual",
    },
    constants={"norm": "layer", "gated_mlp": False, "mlp_bias": True},
    dropouts=("attention_dropout", "hidden_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"),
    neutral=frozenset({"rope_parameters", "rope_theta", "rope_scaling", "rotary_pct", "rotary_emb_base",
                       "partial_rotary_factor", "classifier_dropout"}),
    buffers=("attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"),
)  # fmt: skip
