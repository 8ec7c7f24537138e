"""One checkpoint, saved at tp2 x pp2 x dp2 and continued in other layouts for twenty steps; what saving costs."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from megaokd.checkpoint.contents import read_contents
from megaokd.evaluation.export_check import check_export
from tests.distributed.test_runs import losses
from tests.support.launch import ROOT, broken_training, forked, must, torchrun
from tests.support.tiny import TinyWorld

WORKER = ROOT / "tests" / "distributed" / "checkpoint_worker.py"
SAVED_AT, STEPS = 4, 24
FOURTH = f"step-{SAVED_AT:08d}"
# Warm-up ends and decay goes on after the checkpoint, at different rates for the two groups.
OPTIONS: dict[str, Any] = {
    "train": {"steps": STEPS, "resume": "auto", "seed": 5, "global_batch": 8, "micro_batch": 2},
    "optimizer": {
        "student": {"lr": 2e-3, "warmup_steps": 6, "betas": [0.9, 0.99]},
        "online": {"lr": 1e-3, "schedule": "linear", "weight_decay": 0.01},
    },
}
EIGHT = {"tensor": 2, "student_tensor": 2, "pipeline": 2}
FOUR = {
    "tp4": {"tensor": 4, "sequence_parallel": True},
    "tp4-student2": {"tensor": 4, "student_tensor": 2},
    "pp4": {"pipeline": 4},
    "pp2-interleaved": {"pipeline": 2, "virtual_stages": 2, "schedule": "interleaved1f1b"},
}
SPLITS = {f"tp4-student{inner}-export": {"tensor": 4, "student_tensor": inner} for inner in (1, 2, 4)}
"""The student split in every way beside a teacher on four ranks."""


def run_of(world: TinyWorld, folder: Path, parallel: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A run of the worker."""
    start_from, disk = changes.pop("start_from", None), changes.pop("disk_seconds", 0.0)
    config = world.config(folder, **OPTIONS, parallel=parallel, **changes)
    return {"config": config, "start_from": str(start_from) if start_from else None, "disk_seconds": disk}


def launch(processes: int, path: Path, runs: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(runs))
    must(forked(processes, WORKER, path))


@pytest.fixture(scope="module")
def saved(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight processes: an uninterrupted run in `whole`, and in `same` one that continues its fourth step."""
    root = tmp_path_factory.mktemp("layouts")
    often = {"checkpoint": {"folder": str(root / "whole"), "every": SAVED_AT, "keep_every": SAVED_AT}}
    start_from = root / "whole" / "checkpoints" / FOURTH
    runs = [
        run_of(tiny_world, root / "whole", EIGHT, **often),
        run_of(tiny_world, root / "same", EIGHT, start_from=start_from),
    ]
    launch(8, root / "eight.json", runs)
    return root


@pytest.fixture(scope="module")
def single(tiny_world: TinyWorld, saved: Path) -> Path:
    """One process: `tp1` continues the checkpoint of eight; `beside` and `waiting` save to a slow disk; `late` is
    started three times, with a validation that is due when no step is left.
    """
    runs = [run_of(tiny_world, saved / "tp1", {}, start_from=saved / "whole" / "checkpoints" / FOURTH)]
    for name, asynchronous in (("beside", True), ("waiting", False)):
        # One save in the middle, then enough steps that it has ended before the last one.
        options = {"folder": str(saved / name), "every": 12, "asynchronous": asynchronous, "export": False}
        runs.append(run_of(tiny_world, saved / name, {}, disk_seconds=0.5, checkpoint=options))
    for every in (0, 2, 2):
        late = run_of(tiny_world, saved / "late", {})
        late["config"]["train"] = {**late["config"]["train"], "steps": 2, "validate_every": every}
        runs.append(late)
    launch(1, saved / "one.json", runs)
    return saved


def continued(folder: Path) -> dict[int, tuple[float, ...]]:
    found = losses(folder)
    assert found.keys() == set(range(SAVED_AT + 1, STEPS + 1))
    return found


def test_the_same_layout_continues_bit_for_bit(saved: Path) -> None:
    expected = losses(saved / "whole")
    assert continued(saved / "same") == {step: expected[step] for step in range(SAVED_AT + 1, STEPS + 1)}
    assert check_export(saved / "same") <= 1e-5


def test_other_layouts_continue_it(tiny_world: TinyWorld, saved: Path, single: Path) -> None:
    """Losses and both groups' gradient norms of twenty steps within 1e-5: weights, moments, schedules, data. What is
    exported does not depend, to a byte, on how the student is split.
    """
    start_from = saved / "whole" / "checkpoints" / FOURTH
    four = [run_of(tiny_world, saved / name, parallel, start_from=start_from) for name, parallel in FOUR.items()]
    for name, parallel in SPLITS.items():
        # No step is left: the checkpoint is exported as it is.
        run = run_of(tiny_world, saved / name, parallel, start_from=start_from)
        run["config"]["train"] = {**run["config"]["train"], "steps": SAVED_AT, "micro_batch": 4}
        four.append(run)
    launch(4, saved / "four.json", four)
    exports = {(saved / name / "student" / "model.safetensors").read_bytes() for name in SPLITS}
    assert len(exports) == 1
    expected = losses(saved / "whole")
    for name in (*FOUR, "tp1"):
        for step, values in continued(saved / name).items():
            assert values == pytest.approx(expected[step], rel=1e-5), f"{name}, step {step}"
        assert check_export(saved / name) <= 1e-5


def test_what_is_in_it(saved: Path) -> None:
    """Safetensors and JSON only; each tensor once, under its global name, with both moments; the work is shared."""
    folder = saved / "whole" / "checkpoints" / FOURTH
    names = [path.name for path in folder.iterdir()]
    assert sorted({Path(name).suffix for name in names}) == [".json", ".safetensors"]
    slices: set[tuple[str, str]] = set()
    weights = dict.fromkeys(("student.", "online."), 0)
    writers = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            placed = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            keys = set(file.keys())
        writers += len(keys) > 1
        for name in keys:
            place = (name, str(placed[name]["saved_offsets"]))
            assert place not in slices, "written twice"
            slices.add(place)
            for group in weights:
                if name.startswith(group) and not name.endswith(("exp_avg", "exp_avg_sq")):
                    weights[group] += 1
                    assert {f"{name}.exp_avg", f"{name}.exp_avg_sq"} <= keys
    assert min(weights.values()) > 0
    assert writers == 8, "every rank writes its part"


def test_training_does_not_wait_for_the_disk(single: Path) -> None:
    """None of the disk's half second is in the stall of a save beside training, all of it in the other's."""
    stalls = {}
    for name in ("beside", "waiting"):
        lines = [json.loads(line) for line in (single / name / "log.jsonl").read_text().splitlines()]
        first = next(line for line in lines if line["kind"] == "checkpoint")
        assert first["step"] == 12
        assert first["write_seconds"] >= 0.5
        stalls[name] = first["stall_seconds"]
    assert stalls["beside"] < 0.5 <= stalls["waiting"]
    assert losses(single / "beside") == losses(single / "waiting")


def test_a_validation_made_on_resume_is_saved(single: Path) -> None:
    """The run had no step left: the checkpoint's state is rewritten, is whole, and a third start does not validate."""
    path = single / "late" / "checkpoints" / "step-00000002"
    state = read_contents(path).state
    assert state.validated_at == state.best["step"] == 2
    log = (single / "late" / "log.jsonl").read_text().splitlines()
    assert sum(json.loads(line)["kind"] == "validation" for line in log) == 1


def test_sigterm_while_models_load(tiny_world: TinyWorld, tmp_path: Path) -> None:
    program = broken_training(
        tmp_path,
        "import signal\n"
        "from megaokd import trainer\n"
        "build = trainer.build_run\n"
        "def build_run(*arguments):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return build(*arguments)\n"
        "trainer.build_run = build_run\n",
    )
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(run_of(tiny_world, tmp_path / "run", {})["config"]))
    result = torchrun(1, program, config)
    assert "exitcode  : 75" in result.stderr
    assert "SIGTERM received before step 1" in (tmp_path / "run" / "log.jsonl").read_text()
