"""A checkpoint's files: checksums, completeness, which one is chosen, which ones stay. No models, one process."""

import json
import threading
import tracemalloc
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors import safe_open
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save

from megaokd.agreement import together
from megaokd.checkpoint import host_copy
from megaokd.checkpoint.checkpointer import Checkpointer
from megaokd.checkpoint.choice import choose_checkpoint
from megaokd.checkpoint.contents import Contents, DamagedError, FileEntry, check_files, read_contents, write_contents
from megaokd.checkpoint.host_copy import HostCopy, PinnedMemory
from megaokd.checkpoint.shard_file import shard_name, write_shard
from megaokd.checkpoint.slices import GlobalSlice
from megaokd.checkpoint.state import RunState, checkpoint_path, list_checkpoints, prune
from megaokd.checkpoint.tensors import bounded_groups
from megaokd.config import Checkpoint
from megaokd.errors import RunError, UserError
from megaokd.parallel.layout import TensorLayout

STATE = RunState(
    step=8,
    seed=3,
    data_fingerprint="f",
    global_batch=4,
    sequence_length=16,
    teacher_path=None,
    teacher_hash=None,
    models={"student": {"hidden_size": 16, "norm_eps": 1e-5}, "teacher": None},
    best={"step": 4, "value": 0.1},
)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def make(folder: Path, step: int) -> Path:
    """A checkpoint as far as files go."""
    path = checkpoint_path(folder, step)
    path.mkdir(parents=True)
    names = ("shard-1", "shard-2")
    for number, name in enumerate(names):
        (path / name).write_bytes(bytes(range(number, 200)))
    write_contents(path, Contents(replace(STATE, step=step), {name: FileEntry.of(path / name) for name in names}))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = make(tmp_path, 8)
    contents = read_contents(path)
    assert contents.state == STATE
    check_files(path, contents.files, list(contents.files))


def test_no_flipped_byte_of_the_state_goes_unnoticed(tmp_path: Path) -> None:
    """Every byte in turn: the file is refused, or still says the same."""
    path = make(tmp_path, 8)
    file, before = path / "state.json", read_contents(path)
    whole = file.read_bytes()
    refused = 0
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            assert read_contents(path) == before
        except DamagedError:
            refused += 1
    assert refused > len(whole) / 2, "the rest is white space"


DAMAGE = {
    "a flipped byte": (lambda path: flip(path / "shard-2", 100), "shard-2 has another checksum"),
    "a cut file": (lambda path: (path / "shard-1").write_bytes(b"half"), "shard-1 has 4 bytes instead of 200"),
    "a missing file": (lambda path: (path / "shard-1").unlink(), "shard-1 cannot be read (No such file"),
    "no state": (lambda path: (path / "state.json").unlink(), "state.json cannot be read"),
    "half a state": (lambda path: (path / "state.json").write_text('{"format_ver'), "state.json cannot be read"),
}


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_checkpoint_is_set_aside(case: str, group: dist.ProcessGroup, tmp_path: Path) -> None:
    damage, reason = DAMAGE[case]
    older, newer = make(tmp_path, 4), make(tmp_path, 8)
    damage(newer)
    choice = choose_checkpoint(tmp_path)
    assert choice is not None
    assert (choice.path, choice.contents.state.step) == (older, 4)
    assert len(choice.skipped) == 1
    assert reason in choice.skipped[0]
    assert list_checkpoints(tmp_path) == [older], "it does not count among those that are kept"
    assert (older.parent / "step-00000008.damaged").is_dir()


def test_when_none_is_whole_the_run_does_not_start_anew(group: dist.ProcessGroup, tmp_path: Path) -> None:
    for step in (4, 8):
        flip(make(tmp_path, step) / "shard-1", 0)
    for _ in range(2):  # and a second start finds them as they were
        with pytest.raises(UserError, match=r"none of the 2 checkpoints .* is whole; the newest, step-00000008"):
            choose_checkpoint(tmp_path)


def test_no_checkpoint_is_no_choice(group: dist.ProcessGroup, tmp_path: Path) -> None:
    make(tmp_path, 4).rename(tmp_path / "checkpoints" / "step-00000004.tmp")
    assert choose_checkpoint(tmp_path) is None


def test_the_first_format_is_refused(group: dist.ProcessGroup, tmp_path: Path) -> None:
    make(tmp_path, 4)
    (make(tmp_path, 8) / "state.json").write_text(json.dumps({"step": 8, "format_version": 1}))
    with pytest.raises(UserError, match="has checkpoint format 1, this version of MegaOKD reads 2"):
        choose_checkpoint(tmp_path)


def test_which_checkpoints_stay(tmp_path: Path) -> None:
    for step in range(1, 13):
        make(tmp_path, step)
    (tmp_path / "checkpoints" / "step-00000013.tmp").mkdir()
    prune(tmp_path, keep_last=2, keep_every=4, best_step=7)
    kept = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert kept == [f"step-{step:08d}" for step in (4, 7, 8, 11, 12)]


def test_differences_are_named() -> None:
    now = replace(
        STATE, seed=4, models={"student": {"hidden_size": 32, "norm_eps": 1e-5, "new": 1}, "teacher": {"a": 1}}
    )
    assert STATE.differences(STATE) == []
    assert STATE.differences(now) == [
        "seed was 3 when it was saved and is 4 now",
        "student.hidden_size was 16 when it was saved and is 32 now",
        "teacher was None when it was saved and is {'a': 1} now",
    ]


def test_a_copy_is_not_touched_by_training() -> None:
    """The second save fills the same memory; a slice keeps its place in the global tensor and leaves padding out."""
    host = HostCopy()
    weight, plain = torch.arange(12.0).view(4, 3), torch.ones(2)
    layout = TensorLayout(dim=0, start=4, length=4, size=7)
    copies = host.fill([("weight", GlobalSlice.of(weight, layout)), ("plain", plain)])
    weight.zero_()
    copied = copies["weight"]
    assert isinstance(copied, GlobalSlice)
    assert (copied.offsets, copied.size()) == (torch.Size([4, 0]), torch.Size([7, 3]))
    assert torch.equal(copied.plain(), torch.arange(9.0).view(3, 3))
    again = host.fill([("weight", GlobalSlice.of(weight, layout)), ("plain", plain)])
    assert again["plain"].data_ptr() == copies["plain"].data_ptr()
    assert torch.equal(copied.plain(), torch.zeros(3, 3))


def test_a_file_is_the_one_that_the_library_writes(group: dist.ProcessGroup, tmp_path: Path) -> None:
    """Same tensors, same metadata; a slice is found at its place. Without a copy of it in memory, which would be made
    under the interpreter's lock.
    """
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randn(1 << 20),
        "rng": torch.get_rng_state()[:13],
        "i": torch.arange(6),
    }
    own, library = tmp_path / "own", tmp_path / "library"
    tracemalloc.start()
    write_shard(own / shard_name(0), tensors)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(library), save_distributed=True))
    assert [path.name for path in own.iterdir()] == [path.name for path in library.iterdir()]
    with safe_open(own / shard_name(0), "pt") as ours, safe_open(library / shard_name(0), "pt") as theirs:
        assert list(ours.keys()) == list(theirs.keys())
        assert metadata_of(ours) == metadata_of(theirs)
        for name, tensor in tensors.items():
            assert torch.equal(ours.get_tensor(name), tensor)
    part = GlobalSlice.of(torch.randn(4, 3), TensorLayout(dim=0, start=4, length=4, size=7))
    write_shard(own / shard_name(1), {"c": part})
    found: Any = HuggingFaceStorageReader(str(own)).read_metadata().state_dict_metadata["c"]
    assert [(chunk.offsets, chunk.sizes) for chunk in found.chunks] == [(torch.Size([4, 0]), torch.Size([3, 3]))]


def test_moments_are_loaded_a_bounded_part_at_a_time() -> None:
    sizes = [3, 1, 9, 2, 2, 1]
    items: list[Any] = [SimpleNamespace(parameter=torch.zeros(size)) for size in sizes]
    groups = list(bounded_groups(items, 8 * 4))
    assert [item for group in groups for item in group] == items
    assert [[item.parameter.numel() for item in group] for group in groups] == [[3, 1], [9], [2, 2], [1]]


def metadata_of(file: Any) -> dict[str, Any]:
    """With the library's JSON inside it read."""
    values: dict[str, Any] = file.metadata()
    return {**values, "DCP_SHARDING_INFO": json.loads(values["DCP_SHARDING_INFO"])}


def test_the_saving_thread_uses_its_ranks_device(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, object]] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: used.append((threading.current_thread().name, device)))
    mesh: Any = SimpleNamespace(device=torch.device("cuda", 3))
    engine: Any = None
    Checkpointer(Checkpoint(folder="nowhere"), engine, mesh)._thread.submit(int).result()
    assert used == [("checkpoint_0", torch.device("cuda", 3))]


def test_pinned_tensors_share_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sizes just above powers of two, each of which would take twice its bytes by itself."""
    monkeypatch.setattr(host_copy, "SLAB_BYTES", 1 << 12)
    memory = PinnedMemory(pin=False)
    shapes = [(2, 1025), (3,), (513,), (0, 4), (), (2049, 2), (129, 4), (1025,), (7, 7)]
    tensors = [
        memory.empty(torch.Size(shape), dtype=torch.uint8 if len(shape) == 1 else torch.float32) for shape in shapes
    ]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number)
    for number, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert tensor.shape == shape
        assert tensor.is_contiguous()
        assert (tensor == number).all(), "no two share memory"
    assert [len(slab) for slab in memory.slabs] == [1 << 14, 1 << 15], "those of the two largest hold all"


def test_a_failure_is_told_with_its_rank(group: dist.ProcessGroup, tmp_path: Path) -> None:
    assert together(lambda: 3, group) == [3]
    with pytest.raises(RunError, match=r"rank 0: .*/nothing: No such file or directory"):
        together(lambda: (tmp_path / "nothing").read_bytes(), group)
