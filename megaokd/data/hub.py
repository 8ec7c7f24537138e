"""Telling a Hugging Face name from a path that does not exist, before the network is asked."""

import multiprocessing
import os
import sys


def may_be_hub_name(source: str) -> bool:
    """Whether `source` has the form `name` or `owner/name` of a model or a dataset, and not that of a path."""
    return not source.startswith((".", "/", "~")) and source.count("/") <= 1


def tell_hub_name(name: str) -> None:
    """Say that a word which may be a mistyped path is taken for a name: the Hub may be silent for a minute.

    Once for the processes of a run: by rank 0, and by no worker.
    """
    if os.environ.get("RANK", "0") == "0" and multiprocessing.parent_process() is None:
        print(f"megaokd: there is no folder {name}; asking the Hugging Face Hub for that name", file=sys.stderr)
