"""GPT-2: learned positions, layer norms, a plain MLP; its matrices are stored [in, out]."""

from megaokd.models.families.family import Family, Place, shared

_QKV = shared("attn.c_attn", "q_proj", "k_proj", "v_proj", transposed=True)

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    top={
        "embed_tokens": "transformer.wte",
        "embed_positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "head": "lm_head",
    },
    layer_prefix="transformer.h.{}.",
    layers={
        "input_layernorm": "ln_1",
        **{f"self_attn.{name}": place for name, place in _QKV.items()},
        "self_attn.o_proj": Place("attn.c_proj", transposed=True),
        "post_attention_layernorm": "ln_2",
        "mlp.up_proj": Place("mlp.c_fc", transposed=True),
        "mlp.down_proj": Place("mlp.c_proj", transposed=True),
    },
    fields={
        "vocab_size": "vocab_size",
        "n_embd": "hidden_size",
        "n_layer": "num_layers",
        "n_head": "num_heads",
        "n_inner": "intermediate_size",
        "n_positions": "max_positions",
        "activation_function": "activation",
        "layer_norm_epsilon": "norm_eps",
        "tie_word_embeddings": "tied_head",
        "initializer_range": "initializer_range",
    },
    constants={
        "norm": "layer",
        "gated_mlp": False,
        "qkv_bias": True,
        "output_bias": True,
        "mlp_bias": True,
    },
    required={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    dropouts=("attn_pdrop", "embd_pdrop", "resid_pdrop"),
    neutral=frozenset(
        {"n_ctx", "output_past", "reorder_and_upcast_attn", "summary_activation", "summary_first_dropout",
         "summary_proj_to_labels", "summary_type", "summary_use_proj"}
    ),
    optional_prefix="transformer.",
    buffers=("attn.bias", "attn.masked_bias"),
)  # fmt: skip
