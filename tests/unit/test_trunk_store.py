"""The files of a trunk cache: what was written comes back, and nothing else does."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megaokd.config import Config, OnlineModules, Teacher, TrunkCache
from megaokd.config_file import parse_config
from megaokd.errors import UserError
from megaokd.export_teacher import check_teacher_export
from megaokd.mesh import Axis, ParallelMesh
from megaokd.pipeline.blueprint import Blueprint
from megaokd.trunk_cache.key import folder_name, trunk_key
from megaokd.trunk_cache.store import HIDDEN, INDEX, MANIFEST, TrunkStore
from tests.support.families import VOCABULARY, random_model, save
from tests.support.tiny import TinyWorld

LENGTHS = np.array([3, 1, 4, 2])
KEY = {"teacher": "a", "data": "b"}


@pytest.fixture
def store(tmp_path: Path) -> TrunkStore:
    store = TrunkStore(tmp_path, LENGTHS, 5, "float32")
    store.create(KEY)
    return store.open(write=True)


def example(number: int) -> torch.Tensor:
    return torch.randn(int(LENGTHS[number]), 5, generator=torch.Generator().manual_seed(number))


def read(store: TrunkStore, number: int) -> torch.Tensor | None:
    return store.read(number, int(store.entries()[number]))


def test_what_was_written_comes_back_in_every_bit(store: TrunkStore) -> None:
    for number in (2, 0, 3):
        store.write(number, example(number))
    again = TrunkStore(store.folder, LENGTHS, 5, "float32").open()
    for number in (0, 2, 3):
        found = read(again, number)
        assert found is not None
        assert torch.equal(found, example(number))
    assert read(again, 1) is None
    assert (again.entries() > 0).tolist() == [True, False, True, True]


def test_an_example_larger_than_one_call_reads(store: TrunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write(2, example(2))
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, at: preadv(file, [buffers[0][:7]], at))
    found = read(store, 2)
    assert found is not None
    assert torch.equal(found, example(2))
    os.truncate(store.folder / HIDDEN, 4 * 5 * 4 + 9)
    assert read(store, 2) is None


def test_bf16_is_rounded_to_nearest(tmp_path: Path) -> None:
    store = TrunkStore(tmp_path, LENGTHS, 5, "bfloat16")
    store.create(KEY)
    store.open(write=True).write(2, example(2))
    found = read(store, 2)
    assert found is not None
    assert torch.equal(found, example(2).bfloat16())
    assert (tmp_path / HIDDEN).stat().st_size == LENGTHS.sum() * 5 * 2


def test_a_cache_without_examples_takes_no_room(store: TrunkStore) -> None:
    assert (store.folder / HIDDEN).stat().st_blocks == 0


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / HIDDEN, 4 * 5 * 4 + 7),
        lambda folder: flip(folder / INDEX, 2 * 8 + 1),
        lambda folder: flip(folder / INDEX, 2 * 8 + 4),
    ],
    ids=["a bit of the numbers", "a bit of the checksum", "the mark of presence"],
)
def test_a_flipped_bit_is_seen(damage: Callable[[Path], None], store: TrunkStore) -> None:
    for number in range(4):
        store.write(number, example(number))
    damage(store.folder)
    again = TrunkStore(store.folder, LENGTHS, 5, "float32").open()
    assert [read(again, number) is not None for number in range(4)] == [True, True, False, True]


def test_an_example_that_was_half_written_is_seen(store: TrunkStore) -> None:
    """Its checksum reached the disk and a part of its numbers did not, as after a loss of power."""
    store.write(2, example(2))
    with (store.folder / HIDDEN).open("r+b") as file:
        file.seek(4 * 5 * 4 + 40)
        file.write(bytes(40))
    assert read(store, 2) is None


def test_what_is_forgotten_is_absent(store: TrunkStore) -> None:
    for number in range(4):
        store.write(number, example(number))
    store.forget(np.array([1, 3]))
    assert (store.entries() > 0).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / MANIFEST).write_text('{"format_version": 1, "key'),
        lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace('"a"', '"c"')),
        lambda folder: (folder / INDEX).unlink(),
        lambda folder: (folder / HIDDEN).write_bytes(b"short"),
    ],
    ids=["no manifest", "a torn manifest", "a changed manifest", "no index", "cut"],
)
def test_a_torn_folder_is_not_whole_and_can_be_made_anew(damage: Callable[[Path], None], store: TrunkStore) -> None:
    store.write(0, example(0))
    assert store.is_whole(KEY)
    assert not store.is_whole({**KEY, "data": "other"})
    damage(store.folder)
    assert not store.is_whole(KEY)
    store.create(KEY)
    assert store.is_whole(KEY)
    assert not store.open().entries().any()


def test_a_store_made_anew_leaves_its_readers_alone(store: TrunkStore) -> None:
    store.write(0, example(0))
    reader = TrunkStore(store.folder, LENGTHS, 5, "float32").open()
    store.create(KEY)
    found = read(reader, 0)
    assert found is not None
    assert torch.equal(found, example(0))


def mesh(tensor: int = 1, device: str = "cpu") -> ParallelMesh:
    axis = Axis(None, 0, 1)  # type: ignore[arg-type]
    return ParallelMesh(
        device=torch.device(device),
        pipeline=axis,
        data=axis,
        tensor=Axis(None, 0, tensor),  # type: ignore[arg-type]
        model=axis,
        ends=None,
        saving=None,  # type: ignore[arg-type]
    )


def changed(config: Config, section: str, **values: object) -> Config:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"teacher": {"path": None}}, "teacher.path names no teacher"),
        ({"teacher": {"online": {"layers": 4}}}, "every layer of the teacher carries online modules"),
        ({"checkpoint": {"export_merged_teacher": True}}, "export_merged_teacher needs all of the teacher's weights"),
    ],
)
def test_what_a_cache_cannot_serve_is_refused(
    sections: dict[str, dict[str, Any]], expected: str, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    values = tiny_world.config(tmp_path, **sections)
    values["teacher"]["cache"] = {"path": str(tmp_path)}
    config = parse_config(values)
    check = check_teacher_export if "checkpoint" in sections else lambda given: Blueprint.draw(given, 301, mesh())
    with pytest.raises(UserError, match=expected):
        check(config)


def test_another_key_for_all_that_changes_the_numbers() -> None:
    teacher = Teacher(path="teacher", cache=TrunkCache(path="cache"))
    config = dataclasses.replace(
        parse_config({"data": {"train": "x"}, "train": {"steps": 1}, "checkpoint": {"folder": "y"}}), teacher=teacher
    )

    def name(config: Config = config, of: ParallelMesh | None = None, **values: object) -> str:
        known = {"teacher": "t", "data": "d", "trunk_layers": 6, "hidden_size": 8, "packed": False, **values}
        return folder_name(trunk_key(config, of or mesh(), **known))  # type: ignore[arg-type]

    bf16 = dataclasses.replace(teacher, cache=TrunkCache(path="cache", dtype="bfloat16"))
    names = [
        name(),
        name(teacher="u"),
        name(data="e"),
        name(trunk_layers=5),
        name(packed=True),
        name(changed(config, "data", sequence_length=64)),
        name(changed(config, "train", precision="bf16")),
        name(dataclasses.replace(config, teacher=bf16)),
        name(dataclasses.replace(config, teacher=dataclasses.replace(teacher, dtype="bfloat16"))),
        name(of=mesh(tensor=2)),
        name(changed(config, "parallel", sequence_parallel=True), mesh(tensor=2)),
        name(of=mesh(device="cuda")),
    ]
    assert len(set(names)) == len(names)
    same = [
        changed(config, "train", steps=9, seed=3, micro_batch=4),
        changed(config, "parallel", pipeline=2),
        dataclasses.replace(config, teacher=dataclasses.replace(teacher, cache=TrunkCache(path="elsewhere"))),
        dataclasses.replace(config, teacher=dataclasses.replace(teacher, online=OnlineModules(rank=3))),
    ]
    assert {name(other) for other in same} == {name()}


def test_a_trunk_that_depends_on_the_width_of_its_batch_is_refused(tmp_path: Path) -> None:
    """Of what a teacher's layers give for an example, LongRoPE makes a function of the other examples in its batch."""
    save(random_model("phi3-long"), tmp_path / "teacher")
    values = {
        "data": {"train": "x", "sequence_length": 24, "bucket": 8},
        "train": {"steps": 1},
        "checkpoint": {"folder": "y"},
        "teacher": {"path": str(tmp_path / "teacher"), "cache": {"path": "z"}, "online": {"layers": 1}},
        "student": {"architecture": {"hidden_size": 16, "num_layers": 1}},
    }
    with pytest.raises(UserError, match="LongRoPE changes beyond 16 of them"):
        Blueprint.draw(parse_config(values), VOCABULARY, mesh())
    values["data"]["sequence_length"] = 16  # type: ignore[index]
    Blueprint.draw(parse_config(values), VOCABULARY, mesh())
