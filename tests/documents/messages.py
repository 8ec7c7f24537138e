"""Messages that the documents quote, and the strings of the source that they must come from."""

import ast
import re
from pathlib import Path

from tests.documents.blocks import ROOT

HOLE = "\0"  # what stands in braces in an f-string
# In a quoted message: "..", numbers, 'quoted' values, values behind an equals sign, NAMES.
_VALUE = re.compile(r"\.\.\.?|'[^']*'|(?<==)[\w.-]+|\b\d[\d.,]*\b|\b[A-Z][A-Z-]*\b(?!-)|step-\d+|shard-\.\.\.")


def quoted_messages(page: Path) -> list[str]:
    """What stands in bold code at the beginning of a paragraph."""
    text = page.read_text(encoding="utf-8")
    return [
        " ".join(message.split())
        for paragraph in re.findall(r"^\*\*`.*?(?:\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
        for message in re.findall(r"\*\*`([^`]+)`", paragraph)
    ]


def strings_of_the_source() -> list[str]:
    """Every string of the package, f-strings with HOLE where a value goes, and the lines of the launch scripts."""
    found = []
    for path in (*ROOT.glob("megaokd/**/*.py"), *ROOT.glob("kernels/**/*.py"), *ROOT.glob("tools/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def comes_from(message: str, sources: list[str]) -> bool:
    """Whether what a message says between its values stands in one of the strings, in its order."""
    runs = [run.strip() for run in _VALUE.split(message) if run.strip(" :;,()")]
    pattern = re.compile(".*".join(map(re.escape, runs)), re.DOTALL)
    return bool(runs) and any(pattern.search(source) for source in sources)
