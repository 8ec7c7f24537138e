"""Fenced blocks of the documents, and how they say what a test does with them.

```bash                      run, in the order of the page, in a folder of the page's own
# not run by the tests: WHY   the first line of a block that cannot be: its commands are parsed instead
```python                    run
```yaml title="run.yaml"     a configuration or a recipe; with a title it is saved under that name for what follows
```text                      anything else: output, a synopsis, a layout of folders
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "kernels" / "README.md", *ROOT.glob("docs/**/*.md")]
)
LANGUAGES = ("bash", "python", "yaml", "json", "text")
_BLOCK = re.compile(r"^(`{3,})(\w*)([^\n]*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
_REASON = re.compile(r"# not run by the tests: (.+)\n")
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    language: str
    text: str
    line: int
    title: str | None = None
    reason: str | None = None
    """Why it is not run; None: it is."""


def read_blocks(document: Path) -> list[Block]:
    """All blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    blocks = []
    for found in _BLOCK.finditer(text):
        title, reason = _TITLE.search(found[3]), _REASON.match(found[4])
        blocks.append(
            Block(
                language=found[2],
                text=found[4],
                line=text[: found.start()].count("\n") + 1,
                title=title and title[1],
                reason=reason and reason[1],
            )
        )
    return blocks


def outside_blocks(document: Path) -> str:
    """The document without its fenced blocks."""
    return _BLOCK.sub("", document.read_text(encoding="utf-8"))
