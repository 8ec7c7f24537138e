"""What several rooms do with files: writing one whole or not at all, and knowing one by its checksum."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CHUNK = 1 << 24


def write_whole(path: Path, text: str) -> None:
    """Write a file, in place of one that may be there: after a kill at any moment it is the old one or the new one."""
    partial = path.with_name(f"{path.name}.new")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Plain values as JSON for people to read, by `write_whole`."""
    write_whole(path, json.dumps(values, indent=2) + "\n")


def drop_torn_line(path: Path) -> bytes:
    """Cut off what a full disk or a kill left of a file's last line; what it holds then, nothing without a file."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    return content[:whole]


def sync_folder(path: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_empty(folder: Path) -> None:
    """A folder with nothing in it, whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(values: Mapping[str, Any]) -> str:
    """The sha256 of plain values, hexadecimal, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
