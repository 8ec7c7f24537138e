"""Models by their name on the Hugging Face Hub: fetched into its cache, then a folder like any other."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from huggingface_hub import snapshot_download

from megaokd.config import Config
from megaokd.data.hub import may_be_hub_name, tell_hub_name
from megaokd.errors import UserError

MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
CONFIG_FILES = ("config.json",)
"""What says all of a model but its weights and tokenizer."""
_LEFT_OUT = ["*/*", "consolidated*"]
"""Folders of other formats, and Mistral's second copy of its weights."""


def fetch_models(config: Config, files: Sequence[str] = MODEL_FILES) -> Config:
    """The configuration with folders in the place of Hub names. No collective: each process asks for itself.

    Processes of one machine share the cache, whose locks let one of them download a file while the others wait.

    Raises:
        UserError: neither a folder nor a model that can be had from the Hub.
    """
    teacher, student = config.teacher, config.student
    return replace(
        config,
        teacher=replace(teacher, path=teacher.path and fetch_folder(teacher.path, files)),
        student=replace(student, path=student.path and fetch_folder(student.path, files)),
    )


def fetch_folder(path: str, files: Sequence[str] = MODEL_FILES) -> str:
    """A folder's path as it is; of `owner/name` or `owner/name@revision` the folder in the Hub's cache.

    files: patterns of what is fetched. With HF_HUB_OFFLINE=1 only the cache is asked. A path that has not the form of a
    name is returned as it is.

    Raises:
        UserError: see `fetch_models`.
    """
    if Path(path).exists() or not may_be_hub_name(path):
        return path
    tell_hub_name(path)
    name, _, revision = path.partition("@")
    try:
        return str(
            snapshot_download(name, revision=revision or None, allow_patterns=list(files), ignore_patterns=_LEFT_OUT)
        )
    except Exception as error:  # whatever the network, the Hub and the file system may raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{path}: there is no such folder, and the Hugging Face Hub does not give a model of this name "
            f"({type(error).__name__}: {reason})"
        ) from None
