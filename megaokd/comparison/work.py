"""What a cell and a trial have in common: training in a process of its own, refusing what a changed recipe mixes."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import yaml

from megaokd.comparison.recipe import TIMES
from megaokd.config_file import differences
from megaokd.errors import UserError
from megaokd.exit_status import ExitStatus
from megaokd.files import file_sha256, write_json
from megaokd.subcommand import run_command, shown_command

SOURCES = "sources"
"""In a work's parts: name -> identity of what it took something from."""
OWN_TEXT = ("generated_steps", "replayed_steps")
"""Updates on text that the student has written, and those of them that took it from the buffer."""
PARTS_FILE, CONFIG_FILE, OUTPUT_FILE, SUMMARY_FILE = "cell.json", "config.yaml", "output.txt", "summary.json"


class CellError(Exception):
    """A command ended with another status than 0; its words are the command and its last lines."""

    def __init__(self, words: str, status: int = ExitStatus.FAILED) -> None:
        super().__init__(words)
        self.status = status


class Work(Protocol):
    """A part of the grid."""

    @property
    def name(self) -> str:
        """For people; no other's."""
        ...

    @property
    def folder(self) -> Path:
        """Where all of it lies."""
        ...

    @property
    def begun(self) -> bool:
        """Whether there is something that it would go on from."""
        ...

    @property
    def identity(self) -> str:
        """Of what it made, for those that take it: another after it was made again; empty before."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        ...

    @property
    def sources(self) -> list["Work"]:
        """What has to be finished before this can be known."""
        ...

    def check_unchanged(self) -> None:
        """Refuse to mix results of two recipes. Its sources are finished.

        Raises:
            UserError: this was begun with another configuration.
        """
        ...

    def run(self, say: Callable[[str], None]) -> None:
        """Do what is left; `say` where it stands.

        Raises:
            CellError: a command failed.
        """
        ...


@contextmanager
def output_of(folder: Path) -> Iterator[Callable[[str], None]]:
    """Something that appends to the folder's output.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / OUTPUT_FILE).open("a", encoding="utf-8") as output:

        def write(text: str) -> None:
            output.write(text)
            output.flush()

        yield write


def trained(folder: Path) -> bool:
    """Whether a run has reached its end: the summary is the last that it writes."""
    return (folder / SUMMARY_FILE).is_file()


def begun(folder: Path) -> bool:
    """Whether a run would go on from a checkpoint, or has ended."""
    return trained(folder) or (folder / "checkpoints").is_dir()


def train(folder: Path, config: Mapping[str, Any], processes: int, write: Callable[[str], None]) -> None:
    """From where it stands.

    Raises:
        CellError: it failed.
    """
    path = folder / CONFIG_FILE
    path.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    must(["megaokd", "train", str(path)], write, processes)


def must(command: list[str], write: Callable[[str], None], processes: int = 1) -> None:
    """Run `megaokd ...`, its words into `write`; several processes are started by torchrun.

    Raises:
        CellError: its exit status is not 0.
    """
    if processes > 1:
        command = ["torchrun", "--standalone", f"--nproc-per-node={processes}", "-m", "megaokd.cli", *command[1:]]
    shown = shown_command(command)
    write(f"$ {shown}\n")
    status, last_lines = run_command(command, write)
    if status != 0:
        raise CellError(f"exit status {status} of\n$ {shown}\nits last lines:\n{last_lines}", status)


def cost(folder: Path) -> dict[str, Any]:
    """Updates, those on the student's own text, and both training times of a run that has ended."""
    summary = read_json(folder / SUMMARY_FILE)
    own_text = {name: summary[name] for name in OWN_TEXT if name in summary}  # earlier versions did not count them
    return {name: summary[name] for name in ("steps", *TIMES.values())} | own_text


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote."""
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def identity_of(file: Path) -> str:
    """A hash of what a work wrote last; it holds measured times, so that no second run of it has the same."""
    return file_sha256(file) if file.is_file() else ""


def write_parts(work: Work, parts: Mapping[str, Any]) -> None:
    """Write down what decides the result of `work`, and what its sources are now."""
    write_json(work.folder / PARTS_FILE, {**parts, SOURCES: _sources(work)})


def outdated(grid: Iterable[Work]) -> list[Work]:
    """Works that took something from a source that has been made again since, or is gone; and what took from these.

    grid: each after its sources. What an earlier version began has no account of its sources, and is not among them.
    """
    found: dict[str, Work] = {}
    for work in grid:
        if not (work.begun and (work.folder / PARTS_FILE).is_file()):
            continue
        now = _sources(work)
        before = read_json(work.folder / PARTS_FILE).get(SOURCES, {})
        if any(before.get(name, now[name]) != now[name] or name in found for name in now):
            found[work.name] = work
    return list(found.values())


def _sources(work: Work) -> dict[str, str]:
    return {source.name: source.identity for source in work.sources}


def check_same(name: str, path: Path, parts: Mapping[str, Any], done: Mapping[str, Path]) -> None:
    """Compare `parts` with those that PATH holds, where what they decide is done.

    done: part -> the folder to remove to have it done again; parts that are not in it may change.

    Raises:
        UserError: the recipe has changed.
    """
    if not path.is_file():
        return
    before, now = read_json(path), json.loads(json.dumps(parts))
    for part, folder in done.items():
        if before[part] != now[part]:
            changed = ", ".join(differences(before[part], now[part]))
            raise UserError(
                f"{name}: the recipe has changed since this cell's {part} was done ({changed}); give the recipe "
                f"another folder, or remove {folder} to have it done again"
            )
