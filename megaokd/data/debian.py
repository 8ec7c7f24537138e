"""Debian's package descriptions as pairs: the long description is the prompt, the synopsis what is to be said.

Read from the lists that apt keeps: `*_Translation-en*` holds the descriptions, `*_Packages*` the source of a package.
"""

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from megaokd.errors import UserError

PARTS = ("train", "dev", "test")
_APT_HELPER = "/usr/lib/apt/apt-helper"
_HELD_OUT = 0.05
"""Share of the sources in dev, and in test."""


@dataclass(frozen=True)
class Description:
    """A binary package's."""

    package: str
    source: str
    synopsis: str
    text: str
    """The long description: a paragraph a line; lines that Debian wants shown as they are stay lines."""


def read_descriptions(lists: Path) -> list[Description]:
    """Every described package of apt's lists, by name; of several versions' descriptions the first.

    Raises:
        UserError: no lists there, none with descriptions, or no apt to read them.
    """
    translations = sorted(lists.glob("*_Translation-en*"))
    if not translations:
        raise UserError(
            f"{lists}: no *_Translation-en there, the lists with the descriptions; apt fetches them with\n"
            "  apt-get update -o Acquire::Languages=en\n"
            "into /var/lib/apt/lists, or with -o Dir::State::lists=FOLDER into a folder that has a folder `partial`"
        )
    sources = {
        fields["Package"]: fields.get("Source", fields["Package"]).split()[0]
        for path in sorted(lists.glob("*_Packages*"))
        for fields in _paragraphs(_lines(path))
    }
    found: dict[str, Description] = {}
    for path in translations:
        for fields in _paragraphs(_lines(path)):
            name = fields["Package"]
            synopsis, _, text = fields.get("Description-en", "").partition("\n")
            if text.strip():
                found.setdefault(name, Description(name, sources.get(name, name), synopsis.strip(), _unfold(text)))
    return [found[name] for name in sorted(found)]


def split(descriptions: Iterable[Description], max_characters: int) -> dict[str, list[dict[str, str]]]:
    """Part -> `{prompt, output}`, in an order that does not follow the alphabet. The same for the same lists.

    Packages of a source, and sources that differ in a version's digits, are in one part. A text that several packages
    have is there once. `max_characters`: paragraphs of the long description beyond so many are left out, the first one
    is cut at a word.
    """
    parts: dict[str, list[dict[str, str]]] = {part: [] for part in PARTS}
    seen: set[str] = set()
    for item in sorted(descriptions, key=lambda item: _digest(item.package)):
        text = _shortened(item.text, max_characters)
        if text.lower() not in seen:
            seen.add(text.lower())
            record = {"prompt": f"Package description:\n{text}\nIn one line:\n", "output": item.synopsis}
            parts[_part(item.source)].append(record)
    return parts


def write_parts(parts: Mapping[str, list[dict[str, str]]], folder: Path) -> None:
    """FOLDER/train.jsonl, dev.jsonl, test.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, records in parts.items():
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{part}.jsonl").write_text(text, encoding="utf-8")


def _lines(path: Path) -> Iterator[str]:
    """apt's own reader: the lists may be compressed in any way that apt knows."""
    try:
        result = subprocess.run([_APT_HELPER, "cat-file", str(path)], capture_output=True, check=True)
    except FileNotFoundError:
        raise UserError(f"{_APT_HELPER} is not there: this needs apt, as Debian has it") from None
    except subprocess.CalledProcessError as error:
        words = error.stderr.decode(errors="replace").strip()
        raise UserError(f"{path}: apt cannot read it ({words})") from None
    yield from result.stdout.decode("utf-8", errors="replace").splitlines()


def _paragraphs(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Fields of each stanza that names a package; lines that go on are joined by line breaks."""
    fields: dict[str, str] = {}
    last = ""
    for line in (*lines, ""):
        if not line:
            if "Package" in fields:
                yield fields
            fields = {}
        elif line[0] in " \t":
            fields[last] = f"{fields.get(last, '')}\n{line[1:]}"
        else:
            last, _, value = line.partition(":")
            fields[last] = value.strip()


def _unfold(text: str) -> str:
    """Debian's form undone: ` .` is an empty line, a line that begins with a space more is shown as it is."""
    paragraphs: list[str] = []
    joined = False
    for line in text.splitlines():
        verbatim = line.startswith((" ", "\t"))
        if line.strip() == ".":
            joined = False
        elif joined and not verbatim:
            paragraphs[-1] += f" {line.strip()}"
        else:
            paragraphs.append(line.strip())
            joined = not verbatim
    return "\n".join(paragraphs)


def _shortened(text: str, max_characters: int) -> str:
    kept = ""
    for paragraph in text.splitlines():
        longer = f"{kept}\n{paragraph}".strip()
        if len(longer) > max_characters:
            break
        kept = longer
    return kept or text[:max_characters].rsplit(" ", 1)[0]


def _part(source: str) -> str:
    share = int(_digest(re.sub(r"[\d.]+", "", source))[:8], 16) / 16**8
    return "test" if share < _HELD_OUT else "dev" if share < 2 * _HELD_OUT else "train"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
