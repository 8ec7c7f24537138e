"""What several rooms do with files: writing one whole or not at all, knowing one by its checksum, outputs."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from errno import EACCES
from pathlib import Path
from typing import Any

from megaokd.errors import UserError

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


def check_output_folder(folder: Path) -> None:
    """Refuse a folder that a command could not write into, before the work for it and not after; leaves nothing behind.

    Raises:
        UserError: it cannot be made, or nothing can be written into it.
    """
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if there == folder and folder.is_dir():
            # Asked, not tried: another process may just look whether the folder is empty.
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(EACCES, os.strerror(EACCES))
        else:
            with tempfile.TemporaryDirectory(dir=there):
                pass
    except OSError as error:
        raise UserError(f"{folder}: no folder that can be written ({error.strerror}); give another place") from None


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
