"""state.json: where the run stands, and size and checksum of every other file. Written last, it marks completeness.

{"format_version": 2, "state": {...}, "files": {"shard-....safetensors": {"bytes": .., "sha256": ".."}},
 "sha256": ".. of the three above"}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megaokd.checkpoint.state import RunState
from megaokd.errors import UserError
from megaokd.files import file_sha256, json_sha256, write_json

FORMAT_VERSION = 2
STATE_FILE = "state.json"


class DamagedError(Exception):
    """A checkpoint is incomplete or altered; says which file and how."""


@dataclass(frozen=True)
class FileEntry:
    """What a file was when it was written."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "FileEntry":
        """Read a file and describe it."""
        return cls(path.stat().st_size, file_sha256(path))


@dataclass(frozen=True)
class Contents:
    """What state.json holds."""

    state: RunState
    files: dict[str, FileEntry]


def write_contents(path: Path, contents: Contents) -> None:
    """Write state.json of the checkpoint folder `path`, in place of one that may be there, atomically."""
    values: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "state": asdict(contents.state),
        "files": {name: asdict(entry) for name, entry in sorted(contents.files.items())},
    }
    values["sha256"] = json_sha256(values)
    write_json(path / STATE_FILE, values)


def read_contents(path: Path) -> Contents:
    """Read state.json of the checkpoint folder `path`.

    Raises:
        DamagedError: it is missing, cannot be read, or is not what was written.
        UserError: it was written by a version with another format.
    """
    try:
        values = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{STATE_FILE} cannot be read ({error})") from None
    checksum = values.pop("sha256", None) if isinstance(values, dict) else None
    if checksum is None or checksum != json_sha256(values):
        if isinstance(values, dict) and values.get("format_version") == 1:  # the one format without checksums
            raise _other_version(path, 1)
        raise DamagedError(f"{STATE_FILE} is not what was written")
    if values["format_version"] != FORMAT_VERSION:
        raise _other_version(path, values["format_version"])
    files = {name: FileEntry(**entry) for name, entry in values["files"].items()}
    return Contents(RunState(**values["state"]), files)


def check_files(path: Path, files: Mapping[str, FileEntry], names: Sequence[str]) -> None:
    """Read these files of a checkpoint again and compare.

    Raises:
        DamagedError: the first that is missing, cut or altered.
    """
    for name in names:
        try:
            found = FileEntry.of(path / name)
        except OSError as error:
            raise DamagedError(f"{name} cannot be read ({error.strerror})") from None
        if found.bytes != files[name].bytes:
            raise DamagedError(f"{name} has {found.bytes} bytes instead of {files[name].bytes}")
        if found.sha256 != files[name].sha256:
            raise DamagedError(f"{name} has another checksum than when it was written")


def _other_version(path: Path, version: int) -> UserError:
    return UserError(
        f"{path} has checkpoint format {version}, this version of MegaOKD reads {FORMAT_VERSION}; continue it with the "
        "version that wrote it, or start in another checkpoint.folder"
    )
