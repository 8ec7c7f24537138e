"""The hash of a teacher's files, and what is remembered of it."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from megaokd.models import folder_hash
from megaokd.models.folder_hash import teacher_hash


def test_what_was_hashed_before_an_interruption_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"model-{number}.safetensors" for number in range(3)]
    for file in files:
        file.write_text(file.name)
    monkeypatch.setattr(folder_hash, "WeightFolder", lambda _: SimpleNamespace(files=files))
    monkeypatch.setattr(folder_hash, "read_architecture", lambda _: "architecture")
    read: list[Path] = []
    limit = 2

    def file_sha256(path: Path) -> str:
        if len(read) == limit:
            raise KeyboardInterrupt
        read.append(path)
        return path.name

    monkeypatch.setattr(folder_hash, "file_sha256", file_sha256)
    with pytest.raises(KeyboardInterrupt):
        teacher_hash(tmp_path, tmp_path / "run")
    limit = 3
    first = teacher_hash(tmp_path, tmp_path / "run")
    assert read == files, "each once"
    assert teacher_hash(tmp_path, tmp_path / "run") == first
    assert read == files
    del files[0]
    assert teacher_hash(tmp_path, tmp_path / "run") != first
    assert "model-0" not in (tmp_path / "run" / folder_hash.CACHE_FILE).read_text()
