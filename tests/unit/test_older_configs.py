"""config.json as older versions of `transformers` wrote it, which is how most folders on the Hub still have it."""

import json
from pathlib import Path
from typing import Any

import pytest

from megaokd.errors import UserError
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.rotary import Llama3Scaling, LongRopeScaling, Rotary, YarnScaling

_SIZES = {
    "vocab_size": 1000,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "max_position_embeddings": 4096,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.31.0",
    "use_cache": True,
}
_LLAMA = {
    **_SIZES,
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "tie_word_embeddings": False,
}
_LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}
_QWEN2 = {
    **_LLAMA,
    "model_type": "qwen2",
    "num_key_value_heads": 2,
    "max_window_layers": 4,
    "sliding_window": 4096,
    "use_mrope": False,
    "use_sliding_window": False,
}
_PHI3 = {
    **_LLAMA,
    "model_type": "phi3",
    "attention_bias": False,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "original_max_position_embeddings": 512,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 12, "short_factor": [1.0] * 12},
    "sliding_window": 262144,
}
_GPT2 = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "attn_pdrop": 0.1,
    "n_ctx": 1024,
    "n_embd": 256,
    "n_head": 8,
    "n_layer": 4,
    "n_positions": 1024,
    "vocab_size": 1000,
    "task_specific_params": {"text-generation": {"do_sample": True}},
}
_OPT = {
    **{key: value for key, value in _SIZES.items() if key != "intermediate_size"},
    "model_type": "opt",
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "dropout": 0.1,
    "ffn_dim": 512,
    "init_std": 0.02,
    "prefix": "</s>",
    "word_embed_proj_dim": 256,
}
_NEOX = {
    **_SIZES,
    "model_type": "gpt_neox",
    "attention_probs_dropout_prob": 0,
    "hidden_act": "gelu_fast",
    "rotary_emb_base": 5000,
    "rotary_pct": 0.25,
    "use_parallel_residual": True,
}
_GEMMA3 = {
    **_SIZES,
    "model_type": "gemma3_text",
    "cache_implementation": "hybrid",
    "head_dim": 32,
    "num_key_value_heads": 1,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 2,
}
_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({**_LLAMA, "pretraining_tp": 1}, {"rotary": Rotary(dim=32), "num_kv_heads": 8, "tied_head": False}),
        (
            {**_LLAMA, "rope_theta": 500000.0, "rope_scaling": {**_LLAMA3, "rope_type": "llama3"}},
            {
                "rotary": Rotary(
                    dim=32,
                    theta=500000.0,
                    scaling=Llama3Scaling(
                        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=512
                    ),
                )
            },
        ),
        ({**_LLAMA, "model_type": "mistral", "sliding_window": 128}, {"windows": (128,) * 4}),
        (_QWEN2, {"qkv_bias": True, "output_bias": False, "windows": ()}),
        (
            {**_QWEN2, "rope_scaling": _YARN},
            {
                "rotary": Rotary(
                    dim=32, scaling=YarnScaling(factor=4.0, original_positions=1024, amplitude=1.1386294361119891)
                )
            },
        ),
        (
            _PHI3,
            {
                "rotary": Rotary(
                    dim=24,
                    scaling=LongRopeScaling(
                        short_factor=(1.0,) * 12,
                        long_factor=(2.0,) * 12,
                        original_positions=512,
                        amplitude=1.1547005383792515,
                    ),
                )
            },
        ),
        (_GPT2, {"rotary": None, "intermediate_size": 1024, "dropout": 0.1, "tied_head": True, "norm": "layer"}),
        (_OPT, {"position_offset": 2, "dropout": 0.1, "activation": "relu", "tied_head": True}),
        (_NEOX, {"rotary": Rotary(dim=8, theta=5000.0), "parallel_residual": True, "activation": "gelu_tanh"}),
        (
            _GEMMA3,
            {
                "rotary": Rotary(dim=32, theta=1e6),
                "local_rotary": Rotary(dim=32, theta=1e4),
                "windows": (512, None, 512, None),
                "scaled_embeddings": True,
                "norm_offset": 1.0,
            },
        ),
    ],
    ids=lambda value: value.get("model_type", "") if isinstance(value, dict) else "",
)
def test_older_spellings(values: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    arch = read_architecture(tmp_path)
    assert {name: getattr(arch, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**_OPT, "do_layer_norm_before": False}, "do_layer_norm_before=False is not supported; only True is"),
        ({**_OPT, "word_embed_proj_dim": 128}, "word_embed_proj_dim=128 is not supported; it must equal hidden"),
        ({**_QWEN2, "use_mrope": True}, "use_mrope=True is not supported"),
        ({**_QWEN2, "dual_chunk_attention_config": {}}, "the field 'dual_chunk_attention_config'"),
        ({**_PHI3, "lm_head_bias": True}, "lm_head_bias=True is not supported"),
        ({**_GPT2, "scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({**_GPT2, "n_layer": None}, "n_layer missing"),
        ({**_GEMMA3, "final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported; only None is"),
        ({**_GEMMA3, "model_type": "gemma2"}, "model_type='gemma2' is not supported"),
        ({**_LLAMA, "rope_interleaved": True}, "rope_interleaved=True"),
        ({**_PHI3, "rope_scaling": {**_PHI3["rope_scaling"], "long_factor": [1.0] * 16}}, r"long_factor.*12"),
    ],
)
def test_what_is_not_built_is_named(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        read_architecture(tmp_path)
