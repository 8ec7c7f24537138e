"""summary.html beside the log: written anew at every checkpoint and at the end."""

from pathlib import Path

import yaml

from megaokd.callbacks.base import Callback, CheckpointRecord
from megaokd.callbacks.journal import JOURNAL_FILE, read_journal
from megaokd.config import Config
from megaokd.config_file import differences, to_dict
from megaokd.errors import UserError
from megaokd.files import write_whole
from megaokd.summary.page import summary_page

SUMMARY_FILE = "summary.html"
CONFIG_FILE = "resolved_config.yaml"
"""The configuration as it was run, overrides and defaults included."""


class SummaryPage(Callback):
    """Keeps FOLDER/summary.html up to date; the log must be written before it is told."""

    def __init__(self, folder: Path, config: Config) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / CONFIG_FILE, yaml.safe_dump(to_dict(config), sort_keys=False))

    def on_checkpoint(self, record: CheckpointRecord) -> None:
        write_summary(self._folder)

    def close(self) -> None:
        write_summary(self._folder)


def changed_since(folder: Path, config: Config) -> list[str]:
    """In words, the keys that the run in this folder had otherwise when it was started last; none if nobody knows."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        return []
    return differences(yaml.safe_load(file.read_text(encoding="utf-8")), to_dict(config))


def write_summary(folder: Path) -> Path:
    """Write summary.html from what a run's folder holds, and return where.

    Raises:
        UserError: the folder holds no log of a run.
    """
    if not (folder / JOURNAL_FILE).is_file():
        raise UserError(f"{folder} holds no {JOURNAL_FILE}: give the checkpoint.folder of a run")
    config = folder / CONFIG_FILE
    text = config.read_text(encoding="utf-8") if config.is_file() else ""
    path = folder / SUMMARY_FILE
    write_whole(path, summary_page(folder.resolve().name, read_journal(folder), text))
    return path
