"""Families of models, each as data: what its config.json means, and where its tensors lie."""

from megaokd.models.families.family import Family
from megaokd.models.families.gemma3 import GEMMA3_TEXT
from megaokd.models.families.gpt2 import GPT2
from megaokd.models.families.gpt_neox import GPT_NEOX
from megaokd.models.families.llama import LLAMA, MISTRAL, PHI3, QWEN2, QWEN3
from megaokd.models.families.opt import OPT

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GEMMA3_TEXT, PHI3, GPT2, OPT, GPT_NEOX)
}

__all__ = ["FAMILIES", "Family"]
