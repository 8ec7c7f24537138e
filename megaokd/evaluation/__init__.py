"""Evaluation of a Hugging Face model folder through `transformers`, independent of our own model code."""
