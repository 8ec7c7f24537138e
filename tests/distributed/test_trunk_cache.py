"""Training with a trunk cache against the same training without one, in every kind of layout; and what may befall it.

Eight steps over a data set of six: the second epoch meets the examples in other batches of other widths.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.launch import broken_training, forked, must, start
from tests.support.tiny import TinyWorld, short_data

WORKER = Path(__file__).with_name("trunk_worker.py")
TRAIN = ("-m", "megaokd.cli", "train")
PLAIN: dict[str, Any] = {"teacher": {"online": None}}
ANCHORED: dict[str, Any] = {
    "teacher": {"online": {"kind": "bottleneck", "rank": 4, "layers": 2}},
    "objective": {"teacher": {"ce": 1.0, "anchor": 0.5}},
}
PACKED: dict[str, Any] = {"data": {"packing": True, "train": "SHORT"}}
# name -> (processes, parallel section, other sections)
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "one": (1, {}, {}),
    "packed_tp2_sequence_parallel": (2, {"tensor": 2, "sequence_parallel": True}, PACKED),
    "pp2_plain": (2, {"pipeline": 2}, PLAIN),
    "pp2_anchored": (2, {"pipeline": 2}, ANCHORED),
    "pp2_interleaved": (2, {"pipeline": 2, "virtual_stages": 2, "schedule": "interleaved1f1b"}, {}),
    "tp2_pp2_sequence_parallel": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": True}, {}),
    "tp2_dp2": (4, {"tensor": 2}, {}),
    "pp4_recompute": (4, {"pipeline": 4, "recompute": True}, {}),
}
ROUNDED = {"rounded": (1, {}, {"teacher": {"cache": {"dtype": "bfloat16"}}})}


@pytest.fixture(scope="module")
def results(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout, one launch per number of processes."""
    folder = tmp_path_factory.mktemp("trunks")
    for processes in (1, 2, 4):
        cases = {
            name: case(tiny_world, folder / name, parallel, sections)
            for name, (count, parallel, sections) in (LAYOUTS | ROUNDED).items()
            if count == processes
        }
        (folder / f"cases{processes}.json").write_text(json.dumps(cases))
        must(forked(processes, WORKER, folder / f"cases{processes}.json", folder))
    return folder


def case(world: TinyWorld, folder: Path, parallel: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    values = world.config(folder, parallel=parallel, **sections)
    values["train"] |= {"steps": 8, "global_batch": 16, "micro_batch": 4, "validate_every": 8}
    values["teacher"]["cache"] = {"path": str(folder / "cache"), **values["teacher"].get("cache", {})}
    if values["data"]["train"] == "SHORT":
        values["data"]["train"] = short_data(world)
    return values


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_and_norms_are_those_without_a_cache_in_every_bit(layout: str, results: Path) -> None:
    without, filling, reading = json.loads((results / f"{layout}.json").read_text())
    assert filling["history"] == without["history"]
    assert reading["history"] == without["history"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_complete_cache_is_not_filled_again_and_the_trunk_is_not_loaded(layout: str, results: Path) -> None:
    without, filling, reading = json.loads((results / f"{layout}.json").read_text())
    assert [rank["filled"] for rank in without["ranks"]] == [[] for _ in without["ranks"]]
    assert [rank["filled"] for rank in filling["ranks"]] == [[rank["met"]] for rank in without["ranks"]]
    assert [rank["filled"] for rank in reading["ranks"]] == [[] for _ in reading["ranks"]]
    assert without["ranks"][0]["met"] == 96 + 24 or layout.startswith("packed"), "a whole epoch"
    first = 4 if layout.endswith("plain") else 2
    names = {name for rank in reading["ranks"] for name in rank["teacher"]}
    assert {name.split(".")[1] for name in names if name.startswith("layers.")} == {str(n) for n in range(first, 4)}
    assert "embed_tokens.weight" not in names
    assert "embed_tokens.weight" in {name for rank in without["ranks"] for name in rank["teacher"]}


def test_bf16_rounds(results: Path) -> None:
    """Hidden states are off by up to 2^-9 each: losses by well under a percent, and by something."""
    without, _, reading = json.loads((results / "rounded.json").read_text())
    for one, other in zip(without["history"], reading["history"], strict=True):
        for name in one:
            if name.endswith("student_loss"):
                assert other[name] == pytest.approx(one[name], rel=5e-3)
                assert other[name] != one[name], "nothing was rounded"


@pytest.fixture(scope="module")
def expected(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What a run without a cache logs."""
    folder = tmp_path_factory.mktemp("uncached")
    must(forked(0, *TRAIN, *command(tiny_world, folder), "teacher.cache=null"))
    return logged(folder)


def command(world: TinyWorld, folder: Path) -> list[str]:
    """Arguments of a run in `folder` that has its cache beside it."""
    values = case(world, folder / "run", {}, {})
    values["teacher"]["cache"]["path"] = str(folder / "cache")
    values["checkpoint"]["export"] = False
    (folder / "run.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    return [str(folder / "run.yaml")]


def logged(folder: Path, name: str = "run") -> list[Any]:
    """The losses, norms and validations of a run that ended well."""
    lines = [json.loads(line) for line in (folder / name / "log.jsonl").read_text().splitlines()]
    kept = [
        {key: value for key, value in line.items() if key.endswith(("_loss", "/student", "/online"))} for line in lines
    ]
    return [line for line in kept if line]


KILLED_AT_THE_51ST = """
from megaokd.trunk_cache.store import TrunkStore
write, done = TrunkStore.write, []
def killing(self, example, hidden):
    done.append(example)
    if len(done) > 50:
        data = os.pwrite(self._hidden, b"half", int(self._starts[example]) * self.row_bytes)
        os.kill(os.getpid(), 9)
    write(self, example, hidden)
TrunkStore.write = killing
"""
NO_ROOM = """
usage = shutil.disk_usage
shutil.disk_usage = lambda path: usage(path)._replace(free=1_000_000)
"""
FULL = """
pwrite = os.pwrite
def full(descriptor, data, at):
    if len(data) > 100:
        raise OSError(28, os.strerror(28))
    return pwrite(descriptor, data, at)
os.pwrite = full
"""


def test_a_run_that_is_killed_while_it_writes_leaves_what_it_wrote(
    tiny_world: TinyWorld, expected: list[Any], tmp_path: Path
) -> None:
    arguments = command(tiny_world, tmp_path)
    killed = forked(0, broken_training(tmp_path, KILLED_AT_THE_51ST), *arguments)
    assert killed.returncode == -9
    result = must(forked(0, *TRAIN, *arguments))
    assert logged(tmp_path) == expected
    total, missing = sizes(result.stderr)
    assert 0.4 * total < missing < 0.7 * total, "50 of 120 examples were there"


def sizes(stderr: str) -> tuple[float, float]:
    """KiB of the whole cache and of what was missing, as they were announced."""
    found = re.search(r"teacher.cache: ([\d.]+) (\w+) in .* examples, ([\d.]+) (\w+) of it still to be written", stderr)
    assert found is not None, stderr
    unit = {"bytes": 1 / 1024, "KiB": 1.0, "MiB": 1024.0}
    return float(found[1]) * unit[found[2]], float(found[3]) * unit[found[4]]


def test_damage_is_found_and_mended_and_never_used(tiny_world: TinyWorld, expected: list[Any], tmp_path: Path) -> None:
    arguments = command(tiny_world, tmp_path)
    must(forked(0, *TRAIN, *arguments))
    damaged = 0
    for file in (tmp_path / "cache").glob("*/hidden.bin"):
        with file.open("r+b") as stream:
            stream.seek(file.stat().st_size // 2)
            byte = stream.read(1)
            stream.seek(-1, 1)
            stream.write(bytes([byte[0] ^ 64]))
        damaged += 1
    assert damaged == 2, "training and validation"
    result = must(forked(0, *TRAIN, *arguments, f"checkpoint.folder={tmp_path / 'mended'}"))
    assert result.stderr.count("1 examples in") == 2
    assert "are not what was written and are made again" in result.stderr
    assert logged(tmp_path, "mended") == expected
    for file in (tmp_path / "cache").glob("*/manifest.json"):
        file.write_text(file.read_text()[:40])
    result = must(forked(0, *TRAIN, *arguments, f"checkpoint.folder={tmp_path / 'torn'}"))
    total, missing = sizes(result.stderr)
    assert missing == total
    assert logged(tmp_path, "torn") == expected


def test_two_runs_share_one(tiny_world: TinyWorld, expected: list[Any], tmp_path: Path) -> None:
    """Started together: one writes, the other waits for it and has nothing to write."""
    arguments = command(tiny_world, tmp_path)
    runs = [start(*TRAIN, *arguments, f"checkpoint.folder={tmp_path / name}") for name in "ab"]
    told = [process.communicate(timeout=240)[1] for process in runs]
    assert [process.returncode for process in runs] == [0, 0], told
    assert sum("still to be written" in text for text in told) == 1, told
    assert logged(tmp_path, "a") == logged(tmp_path, "b") == expected


def test_a_disk_without_room_is_refused_beforehand(tiny_world: TinyWorld, tmp_path: Path) -> None:
    refused = forked(0, broken_training(tmp_path, NO_ROOM), *command(tiny_world, tmp_path))
    assert refused.returncode == 2
    assert "are to be written and 976.6 KiB are free; choose another path" in refused.stderr
    assert sum(file.stat().st_blocks for file in (tmp_path / "cache").glob("*/hidden.bin")) == 0


def test_a_disk_that_fills_ends_the_run_with_one_sentence(tiny_world: TinyWorld, tmp_path: Path) -> None:
    ended = forked(0, broken_training(tmp_path, FULL), *command(tiny_world, tmp_path))
    assert ended.returncode == 1
    assert "cannot be written (No space left on device); what is there is kept" in ended.stderr
    assert "Traceback" not in ended.stderr
