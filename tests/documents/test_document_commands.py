"""Every command of the documents works: those that can be run here are run, the others are parsed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents.blocks import DOCUMENTS, LANGUAGES, ROOT, Block, outside_blocks, read_blocks
from tests.documents.shell import COMMANDS, Shell, start_shell

RUN = ("bash", "python")
_COMMAND = re.compile(rf"^(?:\$ )?(?:[\w.]+=\S+ )*(?:{'|'.join(COMMANDS)}|launch_scripts/\S+|\S*/bin/\w+) (?!.*\[)")


def commands_of_results(document: Path) -> list[Block]:
    """A page of results says at its head, indented, which command wrote it."""
    lines = outside_blocks(document).splitlines() if document.parent.name == "results" else []
    commands = [line.strip() for line in lines if line.startswith("    ") and _COMMAND.match(line.strip())]
    return [Block("bash", command, line=1, reason="it made the page") for command in commands]


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with start_shell(tmp_path_factory.mktemp("documents")) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_work(document: Path, shell: Shell, tmp_path: Path) -> None:
    folder = shell.folder(tmp_path / "page")
    for block in [*read_blocks(document), *commands_of_results(document)]:
        if block.title is not None:
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text, encoding="utf-8")
        elif block.language in RUN:
            shell.run(block, folder)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_command_stands_where_it_is_not_tried(document: Path) -> None:
    """Commands are in blocks of bash; lines with `[...]` say how one is called; those of results are parsed."""
    if document.parent.name == "results":
        return
    indented = [line[4:] for line in outside_blocks(document).splitlines() if line.startswith("    ")]
    for block in read_blocks(document):
        assert block.language in LANGUAGES, f"line {block.line}"
        if block.language == "text":
            indented += block.text.splitlines()
    assert [line for line in indented if _COMMAND.match(line)] == []
