"""Decoders, described by an architecture; their weights from and to Hugging Face folders."""
