"""A small random `transformers` model of each family, in its interesting variants, and its logits and gradients."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch.nn import functional
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from megaokd.generation.options import GenerationOptions
from megaokd.models.decoder import Decoder, DecoderSlice
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.huggingface_weights import load_decoder
from megaokd.parallel.region import TensorParallel
from megaokd.parallel.vocab import VocabRange

VOCABULARY, WIDTH = 131, 24
_SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
_OPT = {name: value for name, value in _SIZES.items() if name not in ("intermediate_size", "num_key_value_heads")}
_NEOX = {name: value for name, value in _SIZES.items() if name != "num_key_value_heads"}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
_YARN_SCALED = {**_YARN, "mscale": 0.7, "mscale_all_dim": 0.4, "beta_fast": 16, "beta_slow": 2, "truncate": False}
_LONG = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.0, 2.0, 3.0, 4.0]}

# name -> (model_type, options)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**_SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {**_SIZES, "head_dim": 12, "tie_word_embeddings": True}),
    "llama-linear": ("llama", {**_SIZES, "rope_parameters": {"rope_type": "linear", "factor": 3.0}}),
    "llama-dynamic": ("llama", {**_SIZES, "rope_parameters": {"rope_type": "dynamic", "factor": 3.0}}),
    "llama-llama3": ("llama", {**_SIZES, "rope_parameters": {**_LLAMA3, "rope_theta": 500.0}}),
    "llama-yarn": ("llama", {**_SIZES, "rope_parameters": _YARN}),
    "llama-yarn-scaled": ("llama", {**_SIZES, "rope_parameters": {**_YARN_SCALED, "rope_theta": 100.0}}),
    "mistral": ("mistral", {**_SIZES, "sliding_window": 7}),
    "qwen2": ("qwen2", {**_SIZES, "tie_word_embeddings": True}),
    "qwen2-windows": (
        "qwen2",
        {**_SIZES, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {**_SIZES, "head_dim": 12}),
    "qwen3-one-kv": ("qwen3", {**_SIZES, "num_key_value_heads": 1, "attention_bias": True}),
    "phi3": ("phi3", {**_SIZES, "sliding_window": 9, "pad_token_id": 0}),
    "phi3-long": (
        "phi3",
        {**_SIZES, "original_max_position_embeddings": 16, "rope_parameters": _LONG, "pad_token_id": 0},
    ),
    "phi3-short": (
        "phi3",
        {
            **_SIZES,
            "original_max_position_embeddings": 32,
            "rope_parameters": {**_LONG, "short_factor": [1.1, 1.5], "long_factor": [2.0, 3.0]}
            | {"partial_rotary_factor": 0.5},
            "pad_token_id": 0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        {
            **{key: value for key, value in _SIZES.items() if key != "tie_word_embeddings"},
            "head_dim": 12,
            "query_pre_attn_scalar": 20,
            "sliding_window": 7,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        },
    ),
    "gpt2": ("gpt2", _GPT2),
    "gpt2-wide": ("gpt2", {**_GPT2, "n_inner": 56, "tie_word_embeddings": False, "activation_function": "relu"}),
    "opt": ("opt", {**_OPT, "ffn_dim": 48, "word_embed_proj_dim": 32, "tie_word_embeddings": True}),
    "gpt_neox": ("gpt_neox", {**_NEOX, "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 10000.0}}),
    "gpt_neox-serial": (
        "gpt_neox",
        {**_NEOX, "use_parallel_residual": False, "attention_bias": False, "rope_parameters": {"rope_theta": 100.0}},
    ),
}


GENERATIONS = {
    "greedy": GenerationOptions(max_new_tokens=12, temperature=0.0),
    "sampled": GenerationOptions(max_new_tokens=12),
    "cut": GenerationOptions(max_new_tokens=12, temperature=1.3, top_k=50, top_p=0.9, seed=1),
}

# Those whose teacher's online modules are exported: each way in which a family stores projections.
ADAPTED = ("llama", "llama-tied", "qwen3-one-kv", "phi3", "gpt2", "gpt_neox", "opt")


def random_model(name: str, attention: str = "eager") -> PreTrainedModel:
    """A model whose every weight, norms and biases included, is random and not small; in eval mode, fp32."""
    model_type, options = CASES[name]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[model_type](**options, bos_token_id=1, eos_token_id=2)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            is_norm = any(part in key for part in ("norm", "ln_")) and key.endswith("weight")
            parameter.uniform_(0.5, 1.5) if is_norm else parameter.normal_(0.0, 0.2)
    return model.eval()


def batch() -> torch.Tensor:
    """Token ids [2, WIDTH]."""
    return torch.randint(VOCABULARY, (2, WIDTH), generator=torch.Generator().manual_seed(7))


def loss_of(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def logits_and_gradients(model: PreTrainedModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits of `batch()`, and the gradients of `loss_of` by parameter name as `save_pretrained` writes them."""
    tokens = batch()
    logits = model(tokens).logits
    loss_of(logits, tokens).backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def save(model: PreTrainedModel, folder: Path) -> None:
    """Write a Hugging Face folder, a tokenizer included."""
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({f"t{number}": number for number in range(VOCABULARY)}, unk_token="t0"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0", bos_token="t1", eos_token="t2")
    tokenizer.save_pretrained(folder)


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    """The whole model in a folder as our decoder."""
    arch = read_architecture(folder)
    part, vocab = DecoderSlice(range(arch.num_layers)), VocabRange(0, arch.vocab_size, arch.vocab_size)
    decoder = Decoder(arch, part, vocab, TensorParallel()).to(dtype)
    load_decoder(decoder, folder)
    return decoder


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / |theirs|."""
    return float((ours.detach() - theirs.detach()).norm() / theirs.detach().norm())


def compare_gradients(
    name: str, ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float = 1e-5
) -> None:
    """Every gradient by the name in the files, each relative to its own norm."""
    if CASES[name][0] == "gpt_neox":
        theirs = {key.replace("lm_head", "embed_out"): value for key, value in theirs.items()}
    assert ours.keys() == theirs.keys()
    scale = max(float(gradient.norm()) for gradient in theirs.values())
    for key, gradient in theirs.items():
        if CASES[name][0] == "opt" and key.endswith("k_proj.bias"):
            # Without rotations it adds the same to all scores of a query: its gradient is zero.
            assert max(float(ours[key].norm()), float(gradient.norm())) < 1e-6 * scale
        else:
            assert relative(ours[key], gradient) < tolerance, key
