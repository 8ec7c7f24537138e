"""Sections of the configuration that are rooms of their own; `config.py` puts them into the whole."""
