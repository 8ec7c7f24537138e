"""MegaOKD: online knowledge distillation of language models, tensor- and pipeline-parallel."""

from megaokd.version import __version__

__all__ = ["__version__"]
