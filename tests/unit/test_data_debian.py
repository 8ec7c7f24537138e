"""Debian's descriptions as pairs: what is read of apt's lists, what falls into one part."""

import json
from pathlib import Path

import pytest

from megaokd.cli import main
from megaokd.data import debian
from megaokd.data.debian import Description, read_descriptions, split
from megaokd.errors import UserError

TRANSLATIONS = """Package: libfoo1
Description-md5: 0
Description-en: library for foo - runtime
 Foo is a thing
 that does foo.
 .
 It does:
  * this
  * that

Package: foo-bare
Description-en: no more than this

Package: libfoo1
Description-en: an older version's
 Older.
"""
PACKAGES = """Package: libfoo1
Source: foo (1.2-3)
Description: library for foo - runtime

Package: bar
Version: 1
"""


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """apt's lists, uncompressed and without apt."""
    (tmp_path / "host_dists_main_i18n_Translation-en").write_text(TRANSLATIONS)
    (tmp_path / "host_dists_main_binary-amd64_Packages").write_text(PACKAGES)
    monkeypatch.setattr(debian, "_lines", lambda path: iter(path.read_text().splitlines()))
    return tmp_path


def test_what_is_read(lists: Path) -> None:
    assert read_descriptions(lists) == [
        Description(
            "libfoo1", "foo", "library for foo - runtime", "Foo is a thing that does foo.\nIt does:\n* this\n* that"
        )
    ]


def test_the_command_writes_what_preprocess_reads(lists: Path, tmp_path: Path) -> None:
    assert main(["debian-descriptions", "--lists", str(lists), "--output", str(tmp_path / "out")]) == 0
    records = [json.loads(line) for part in debian.PARTS for line in (tmp_path / "out" / f"{part}.jsonl").open()]
    assert [record["output"] for record in records] == ["library for foo - runtime"]
    assert records[0]["prompt"].startswith("Package description:\nFoo is a thing that does foo.\n")


def test_a_source_is_in_one_part_whatever_its_version(lists: Path) -> None:
    descriptions = [
        Description(f"lib{name}{number}-dev", f"{name}-{version}", f"synopsis {name}", f"Text of {name} {number}.")
        for name in (f"source{chr(97 + first)}{chr(97 + second)}" for first in range(20) for second in range(20))
        for number, version in enumerate(("1", "2", "10.3"))
    ]
    parts = split(descriptions, 500)
    of = {part: {record["output"] for record in records} for part, records in parts.items()}
    assert sum(len(records) for records in parts.values()) == len(descriptions)
    assert all(of.values())
    assert sum(map(len, of.values())) == len(set.union(*of.values())), "a source in two parts"
    assert len(of["dev"]) + len(of["test"]) < 80  # a tenth of 400 sources: more than 80 once in 10^11
    assert split(reversed(descriptions), 500) == parts


def test_a_text_is_there_once_and_ends_with_a_paragraph_or_a_word() -> None:
    one = Description("a", "a", "one", "Same text of several packages.\nA longer paragraph.")
    two = Description("b", "b", "two", "same Text of several packages.\nAnother end.")
    records = [record for records in split([one, two], 30).values() for record in records]
    assert len(records) == 1
    assert records[0]["prompt"].splitlines()[1].lower() == "same text of several packages."
    records = [record for records in split([one], 12).values() for record in records]
    assert records[0]["prompt"].splitlines()[1] == "Same text"


def test_lists_without_descriptions_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"apt-get update -o Acquire::Languages=en"):
        read_descriptions(tmp_path)
