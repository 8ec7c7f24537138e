"""OPT: learned positions with two rows in front, layer norms, ReLU. The 350M model's norms behind are refused."""

from megaokd.models.families.family import Family

OPT = Family(
    model_type="opt",
    architecture="OPTForCausalLM",
    top={
        "embed_tokens": "model.decoder.embed_tokens",
        "embed_positions": "model.decoder.embed_positions",
        "norm": "model.decoder.final_layer_norm",
        "head": "lm_head",
    },
    layer_prefix="model.decoder.layers.{}.",
    layers={
        "input_layernorm": "self_attn_layer_norm",
        "self_attn.q_proj": "self_attn.q_proj",
        "self_attn.k_proj": "self_attn.k_proj",
        "self_attn.v_proj": "self_attn.v_proj",
        "self_attn.o_proj": "self_attn.out_proj",
        "post_attention_layernorm": "final_layer_norm",
        "mlp.up_proj": "fc1",
        "mlp.down_proj": "fc2",
    },
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "ffn_dim": "intermediate_size",
        "max_position_embeddings": "max_positions",
        "activation_function": "activation",
        "tie_word_embeddings": "tied_head",
        "init_std": "initializer_range",
    },
    constants={
        "norm": "layer",
        "norm_eps": 1e-5,
        "gated_mlp": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
        "position_offset": 2,
    },
    required={
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "layerdrop": 0.0,
    },
    equal={"word_embed_proj_dim": "hidden_size"},
    dropouts=("attention_dropout", "activation_dropout", "dropout"),
    neutral=frozenset({"prefix"}),
    optional_prefix="model.",
)
