"""The distillation loss, for one process or a vocabulary split over many. Import it as ``megaokd.kernels``.

from megaokd.kernels import distillation_loss, Term
"""

if __name__ == "kernels":
    # With the repository root on sys.path this folder hides PyPI's package "kernels", which other libraries probe for:
    # find that one on the rest of the path and take its place. Where it is not installed this stays an empty module
    # without a version, which those probes read as "not there"; an ImportError would end them.
    import importlib.machinery
    import importlib.util
    import sys
    from pathlib import Path

    _here = Path(__file__).resolve().parent.parent
    _elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _here]
    _found = importlib.machinery.PathFinder.find_spec(__name__, _elsewhere)
    if _found is not None and _found.loader is not None:
        _module = importlib.util.module_from_spec(_found)
        sys.modules[__name__] = _module
        _found.loader.exec_module(_module)
else:
    from .linear import linear_distillation_loss
    from .loss import DistillationOutput, distillation_loss
    from .measure import token_measures
    from .spec import metric_names
    from .terms import Term

    __all__ = [
        "DistillationOutput",
        "Term",
        "distillation_loss",
        "linear_distillation_loss",
        "metric_names",
        "token_measures",
    ]
