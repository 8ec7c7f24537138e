"""Knowing a model folder by a hash of its files."""

import hashlib
import json
from pathlib import Path

from megaokd.files import file_sha256, write_json
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.weight_folder import WeightFolder

CACHE_FILE = "teacher_hash.json"


def teacher_hash(folder: str | Path, cache_folder: Path) -> str:
    """sha256 over architecture and weight files. A file of known path, size and time is looked up, not read again.

    Each file's is kept as soon as it is known, so that a run that is interrupted meanwhile does not begin anew.
    """
    weights = WeightFolder(folder)
    cache_path = cache_folder / CACHE_FILE
    cache = _read_cache(cache_path)
    total = hashlib.sha256(repr(read_architecture(folder)).encode())
    known = {}
    for path in weights.files:
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        if key not in cache:
            cache[key] = file_sha256(path)
            cache_folder.mkdir(parents=True, exist_ok=True)
            write_json(cache_path, cache)
        known[key] = cache[key]
        total.update(f"{path.name}:{known[key]}\n".encode())
    if known != cache:  # of files that are no longer there, or another teacher's
        write_json(cache_path, known)
    return total.hexdigest()


def _read_cache(path: Path) -> dict[str, str]:
    """File -> hash; empty where there is no cache or it cannot be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
