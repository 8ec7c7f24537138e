"""Whole runs of `megaokd train`: resume, kills, interruption, export, bad input. Where it
matters how a process starts or ends it is a real one, or several; other runs are forked.
"""

import html
import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from megaokd.callbacks.journal import read_journal
from megaokd.callbacks.tensorboard import tag
from megaokd.config_file import load_config, to_dict
from megaokd.data.dataset import TokenDataset
from megaokd.evaluation.export_check import check_export
from megaokd.samples import NO_PIPELINE
from tests.support.launch import ROOT, broken_training, environment, forked, megaokd, must, start, torchrun
from tests.support.tiny import TinyWorld, run, short_data

CLI = ("-m", "megaokd.cli", "train")


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    return path


def losses(folder: Path) -> dict[int, tuple[float, ...]]:
    """Step -> losses and norms; a step that was done twice must have come out the same both times."""
    found: dict[int, tuple[float, ...]] = {}
    for line in (folder / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "train":
            names = ("train/student_loss", "train/teacher_loss", "gradient_norm/student", "gradient_norm/online")
            values = tuple(record[name] for name in names)
            assert found.setdefault(record["step"], values) == values, f"step {record['step']} differs when repeated"
    return found


@pytest.fixture(scope="module")
def uninterrupted(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps in one process, never stopped."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    options: dict[str, dict[str, Any]] = {
        "train": {"steps": 12, "validate_every": 6, "profile": "3:5"},
        "teacher": {"check_frozen_every": 4},
        "checkpoint": {"export_merged_teacher": True},
        "logging": {"warnings": {"teacher_drift": 1e-9}, "samples": 2, "samples_every": 2},
        "deepspeed": {
            "csv_monitor": {"enabled": True, "output_path": str(folder), "job_name": "csv"},
            "wandb": {"enabled": True, "project": "megaokd"},
        },
    }
    config = write(folder / "run.yaml", tiny_world.config(folder / "run", **options))
    result = must(megaokd("train", config, variables=with_fake_wandb(folder)))
    assert result.stderr.count("megaokd: step 6: warning: the adapted teacher is") == 1
    return folder / "run"


def test_a_trace_of_the_steps_asked_for(uninterrupted: Path) -> None:
    assert_traced(uninterrupted, ["steps-3-4.rank0.json"], {"step 3", "step 4"})


def assert_traced(folder: Path, files: list[str], steps: set[str]) -> None:
    """These traces and no others, each of these steps and no others."""
    traces = sorted((folder / "profile").iterdir())
    assert [trace.name for trace in traces] == files
    for trace in traces:
        names = {event.get("name") for event in json.loads(trace.read_text())["traceEvents"]}
        assert {name for name in names if str(name).startswith("step ")} == steps
        assert "aten::mm" in names


def with_fake_wandb(folder: Path) -> dict[str, str]:
    """The environment with a package of that name, which writes what it is called with to wandb.jsonl."""
    (folder / "packages").mkdir()
    (folder / "packages" / "wandb.py").write_text(
        "import json\n"
        f"def tell(*values):\n    open({str(folder / 'wandb.jsonl')!r}, 'a').write(json.dumps(values) + '\\n')\n"
        "def init(**options):\n    tell('init', options)\n"
        "def log(values, step, commit):\n    tell('log', values, step)\n"
    )
    return {**environment(), "PYTHONPATH": f"{folder / 'packages'}:{ROOT}"}


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    log = folder / "log.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached: {process.communicate()[1][-3000:]}")


def test_the_teacher_that_a_run_leaves(tiny_world: TinyWorld, uninterrupted: Path) -> None:
    tokens = torch.arange(20).unsqueeze(0)
    original = AutoModelForCausalLM.from_pretrained(tiny_world.teacher)
    before = original(tokens).logits
    adapted = PeftModel.from_pretrained(original, uninterrupted / "teacher_adapter").eval()(tokens).logits
    merged = AutoModelForCausalLM.from_pretrained(uninterrupted / "teacher")(tokens).logits
    torch.testing.assert_close(adapted, merged, rtol=0, atol=1e-5)
    assert (adapted - before).abs().max() > 1e-3, "the modules were trained"


def test_a_checkpoint_is_exported_in_another_layout(uninterrupted: Path, tmp_path: Path) -> None:
    """As the run itself exported its last step, byte by byte; an output folder that holds something is left alone."""
    config, command = uninterrupted.parent / "run.yaml", ("-m", "megaokd.cli", "export")
    student, adapter = tmp_path / "student", tmp_path / "adapter"
    must(torchrun(2, *command, config, "--output", student, "parallel.tensor=2"))
    must(forked(2, *command, config, "--what=adapter", "--checkpoint=12", "--output", adapter, "parallel.pipeline=2"))
    for written, expected in ((student, uninterrupted / "student"), (adapter, uninterrupted / "teacher_adapter")):
        files = sorted(path.name for path in expected.iterdir())
        assert sorted(path.name for path in written.iterdir()) == files
        for name in files:
            assert (written / name).read_bytes() == (expected / name).read_bytes(), name
    for arguments, message in (
        (("--output", student), "is not an empty folder"),
        (("--output", tmp_path / "new", "--checkpoint=7"), "holds no step 7; there are ["),
        (("--output", tmp_path / "new", "teacher.online.rank=2"), "teacher.online.rank was 4"),
    ):
        result = forked(0, "-m", "megaokd.cli", "export", config, *arguments)
        assert (result.returncode, "Traceback" in result.stderr) == (2, False)
        assert message in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_is_evaluated_as_its_export(tiny_world: TinyWorld, uninterrupted: Path, tmp_path: Path) -> None:
    """Read where it lies, split otherwise than it was trained; generations too. The last step is what was exported."""
    checkpoints = uninterrupted / "checkpoints"
    found = {}
    for name, model, tensor in (
        ("export", uninterrupted / "student", 1),
        ("checkpoint", checkpoints / "step-00000012", 2),
        ("earlier", checkpoints / "step-00000006", 1),
    ):
        words = ["--model", model, "--data", tiny_world.validation, "--generate", "4", "--max-new-tokens", "8"]
        words += ["--tensor", str(tensor), "--output", tmp_path / name]
        must(forked(tensor if tensor > 1 else 0, "-m", "megaokd.cli", "evaluate", *words))
        found[name] = json.loads((tmp_path / name / "evaluation.json").read_text())
    assert found["checkpoint"]["cross_entropy"] == pytest.approx(found["export"]["cross_entropy"], rel=1e-6)
    assert found["earlier"]["cross_entropy"] != pytest.approx(found["export"]["cross_entropy"], rel=1e-4)
    assert found["checkpoint"]["parameters"] == found["export"]["parameters"]
    texts = [(tmp_path / name / "generations.jsonl").read_text() for name in ("checkpoint", "export")]
    assert texts[0] == texts[1]
    for path in (uninterrupted, checkpoints / "step-00000099"):
        words = ["--model", path, "--data", tiny_world.validation, "--output", tmp_path / "none"]
        result = forked(0, "-m", "megaokd.cli", "evaluate", *words)
        assert (result.returncode, "Traceback" in result.stderr) == (2, False)
        assert f"{path}: neither a Hugging Face model folder" in result.stderr


def test_sigterm_saves_and_asks_to_be_started_again(tiny_world: TinyWorld, uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = {
        "train": {"steps": 12, "validate_every": 6, "resume": "auto"},
        "logging": {"warnings": {"teacher_drift": 1e-9}},
    }
    config = write(tmp_path / "run.yaml", tiny_world.config(folder, **options))
    process = start(*CLI, config)
    wait_for_step(process, folder, 7)
    process.send_signal(signal.SIGINT)  # Ctrl-C asks for the same
    assert "SIGTERM received, checkpoint saved" in process.communicate()[1]
    assert process.returncode == 75
    less = forked(0, *CLI, config, "train.steps=3")
    assert (less.returncode, "train.steps=3, but " in less.stderr) == (2, True)
    told = must(megaokd("train", config, "logging.every=2")).stderr
    assert re.search(rf"continuing from step \d+ of {folder}; changed since then: logging.every: 1 -> 2\n", told)
    assert f"{folder} holds student, teacher_adapter, checkpoints, summary.html" in told
    assert losses(folder) == {step: found for step, found in losses(uninterrupted).items() if step in losses(folder)}
    again = must(forked(0, *CLI, config)).stderr
    assert f"{folder} is at step 12, the last one: nothing is trained" in again
    warnings = [[line for line in read_journal(run) if line["kind"] == "warning"] for run in (folder, uninterrupted)]
    assert warnings[0] == warnings[1], "what was told before SIGTERM is not told again"


def test_sigterm_to_the_launcher_stops_all_ranks_at_one_step(
    tiny_world: TinyWorld, uninterrupted: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    options = {
        "train": {"steps": 12, "validate_every": 6, "resume": "auto"},
        "parallel": {"tensor": 2},
        "logging": {"samples": 2},
    }
    config = write(tmp_path / "run.yaml", tiny_world.config(folder, **options))
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    process = start(*launcher, *CLI, config)
    wait_for_step(process, folder, 2)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    saved = [path.name for path in (folder / "checkpoints").iterdir()]
    assert len(saved) == 1, "one checkpoint, of the step that the ranks agreed on"
    before = json.loads((folder / "checkpoints" / saved[0] / "state.json").read_text())["state"]
    must(torchrun(2, *CLI, config, "train.profile=12:13"))
    assert_traced(folder, ["steps-12-12.rank0.json", "steps-12-12.rank1.json"], {"step 12"})
    summary = json.loads((folder / "summary.json").read_text())
    # Two processes that each compute or wait in gloo; the time before the interruption is not lost.
    assert 0 < before["training_cpu_seconds"] < summary["training_cpu_seconds"]
    assert 0 < before["training_seconds"] < summary["training_seconds"]
    assert read_samples(folder)[12] == read_samples(uninterrupted)[12]
    expected, found = losses(uninterrupted), losses(folder)
    assert expected.keys() == found.keys()
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-5), f"step {step}"


def test_starts_without_a_compiler(tiny_world: TinyWorld, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = write(tmp_path / "run.yaml", tiny_world.config(folder, train={"steps": 1}))
    empty = tmp_path / "no-programs"
    empty.mkdir()
    must(megaokd("train", config, variables={**environment(), "PATH": str(empty)}))


def test_early_stopping_keeps_the_best(tiny_world: TinyWorld, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    # A learning rate that soon does harm: the held-out loss rises after the first validations.
    options = {
        "train": {"steps": 40, "validate_every": 1, "early_stopping": 3},
        "optimizer": {"student": {"lr": 0.3, "schedule": "constant"}},
        "checkpoint": {"every": 1, "keep_last": 1, "export": False},
    }
    must(forked(0, *CLI, write(tmp_path / "run.yaml", tiny_world.config(folder, **options))))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == summary["best"]["step"] + 3 < 40
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == [f"step-{step:08d}" for step in (summary["best"]["step"], summary["steps"])]


def test_what_is_seen(uninterrupted: Path) -> None:
    """TensorBoard and the JSONL log show both objectives, the drift, both groups, speed and memory."""
    events = EventAccumulator(str(uninterrupted / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    tags = events.Tags()
    terms = {"student_loss", "teacher_loss", "student_ce", "teacher_ce", "forward_kl", "reverse_kl", "top1_agreement"}
    expected = {f"{part}/{name}" for part in ("train", "validation") for name in terms}
    expected |= {f"{kind}/{group}" for kind in ("gradient_norm", "learning_rate") for group in ("student", "online")}
    expected |= {"validation/teacher_drift", "speed/tokens_per_second", "memory/peak_bytes"}
    assert {tag(name) for name in expected} <= set(tags["scalars"])
    drift = [event.value for event in events.Scalars("1_overview/teacher_drift")]
    assert len(drift) == 2
    assert 0.0 < drift[0] < drift[1], "the teacher moves away from where it began"
    norms = [event.histogram_value for event in events.Histograms("6_online_modules/norm")]
    assert [norm.num for norm in norms] == [14, 14], "two layers of seven projections"
    assert 0.0 < norms[0].min < norms[1].min
    assert {"configuration/text_summary", "warnings/text_summary"} <= set(tags["tensors"])


def read_samples(folder: Path) -> dict[int, list[dict[str, str]]]:
    return {line["step"]: line["samples"] for line in read_journal(folder) if line["kind"] == "samples"}


def test_text_samples_are_the_answers_of_the_exported_student(tiny_world: TinyWorld, uninterrupted: Path) -> None:
    samples = read_samples(uninterrupted)
    assert samples.keys() == {12}, "every second validation"
    tokenizer = AutoTokenizer.from_pretrained(uninterrupted / "student")
    student = AutoModelForCausalLM.from_pretrained(uninterrupted / "student")
    dataset = TokenDataset(tiny_world.validation)
    page = (uninterrupted / "summary.html").read_text()
    for number, sample in enumerate(samples[12]):
        tokens, end = torch.from_numpy(dataset[number]), int(dataset.prompt_lengths[number])
        answer = student.generate(tokens[None, :end], max_new_tokens=64, do_sample=False)[0, end:]
        parts = {"prompt": tokens[:end], "reference": tokens[end:], "student": answer}
        assert sample == {name: tokenizer.decode(ids, skip_special_tokens=True) for name, ids in parts.items()}
        assert html.escape(sample["reference"]) in page
    assert len(samples[12]) == 2


def test_the_page_and_the_monitors_have_the_numbers_of_the_log(uninterrupted: Path) -> None:
    journal = read_journal(uninterrupted)
    page = (uninterrupted / "summary.html").read_text()
    assert "Step 12; last checkpoint: step 12; 1 warning" in page
    assert "lower optimizer.online.lr" in page
    run_again = load_config(uninterrupted / "resolved_config.yaml")
    assert to_dict(run_again) == json.loads((uninterrupted / "summary.json").read_text())["config"]
    expected = [
        {name: (line["step"], value) for name, value in line.items() if "/" in name}
        for line in journal
        if line["kind"] in ("train", "validation")
    ]
    calls = [json.loads(line) for line in (uninterrupted.parent / "wandb.jsonl").read_text().splitlines()]
    assert calls[0] == ["init", {"project": "megaokd", "group": None, "entity": None}]
    told = [(name, step, value) for _, values, step in calls[1:] for name, value in values.items()]
    assert told == [(name, step, value) for line in expected for name, (step, value) in line.items()]
    rows = (uninterrupted.parent / "csv" / "validation_teacher_drift.csv").read_text().split()
    drift = "validation/teacher_drift"
    assert rows[1:] == [f"{step},{value}" for line in expected for step, value in [line.get(drift, (0, 0))] if step]


def test_supervised_training_needs_no_teacher(tiny_world: TinyWorld, tmp_path: Path) -> None:
    values = tiny_world.config(tmp_path / "run", teacher={"path": None}, train={"steps": 2})
    must(torchrun(2, *CLI, write(tmp_path / "run.yaml", values), "parallel.pipeline=2", "logging.samples=2"))
    assert check_export(tmp_path / "run") <= 1e-5
    told = [line["text"] for line in read_journal(tmp_path / "run") if line["kind"] == "message"]
    assert told == [NO_PIPELINE, f"{tmp_path / 'run'} holds student, checkpoints, summary.html"]


def test_an_export_is_checked_with_few_tokens(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """A row for each group of the student, however large the micro-batch is; packed rows, read as one text."""
    packed = {"train": short_data(tiny_world), "packing": True}
    values = tiny_world.config(tmp_path / "run", data=packed, train={"steps": 1, "micro_batch": 4})
    config = write(tmp_path / "run.yaml", values)
    must(forked(2, *CLI, config, "parallel={tensor: 2, student_tensor: 1, sequence_parallel: true}"))
    assert check_export(tmp_path / "run") <= 1e-5
    logits = load_file(tmp_path / "run" / "export_check.safetensors")["logits"]
    assert logits.shape[:2] == (2, 64)


def test_a_check_that_fails_takes_nothing_with_it(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """It needs memory on the device, after hours of training."""
    program = broken_training(
        tmp_path,
        "from megaokd import trainer\n"
        "def write_export_check(run, path):\n"
        "    raise MemoryError('as on a full device')\n"
        "trainer.write_export_check = write_export_check\n",
    )
    options: dict[str, dict[str, Any]] = {"train": {"steps": 1}, "checkpoint": {"export_merged_teacher": True}}
    result = forked(0, program, write(tmp_path / "run.yaml", tiny_world.config(tmp_path / "run", **options)))
    assert "as on a full device" in result.stderr
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"summary.json", "student", "teacher_adapter", "teacher"} <= left


def test_a_checkpoint_of_another_model_is_refused(tiny_world: TinyWorld, uninterrupted: Path, tmp_path: Path) -> None:
    values = tiny_world.config(uninterrupted, train={"steps": 12, "resume": "auto"})
    changes = {"teacher.online.rank=2": "teacher.online.rank was 4", "teacher.online=null": "teacher.online was {"}
    for override, difference in changes.items():
        result = forked(0, *CLI, write(tmp_path / "run.yaml", values), override)
        assert result.returncode == 2
        assert difference in result.stderr


def test_a_torn_hash_cache_is_made_again(tiny_world: TinyWorld, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "teacher_hash.json").write_text('{"half')
    must(forked(0, *CLI, write(tmp_path / "run.yaml", tiny_world.config(folder, train={"steps": 1}))))


def test_nan_is_traced_to_the_rank_it_came_from(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """Data-parallel rank 1 alone sees a NaN; both ranks end, and the message names rank 1."""
    program = broken_training(
        tmp_path,
        "import torch.distributed as dist\n"
        "from megaokd.distill import objective\n"
        "original = objective.HiddenStateLoss.__call__\n"
        "def broken(self, hidden, labels, *, scale):\n"
        "    nan = float('nan') if dist.get_rank() == 1 else 1.0\n"
        "    return original(self, hidden, labels, scale=scale) * nan\n"
        "objective.HiddenStateLoss.__call__ = broken\n",
    )
    config = write(tmp_path / "run.yaml", tiny_world.config(tmp_path / "run"))
    result = torchrun(2, program, config, timeout=120)
    assert result.returncode != 0
    assert "step 1:" in result.stderr
    assert "(seen on ranks: 1)" in result.stderr


def test_a_step_that_fails_is_not_reduced(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """The reduction would wait for ranks that may never come, and the error with it."""
    program = broken_training(
        tmp_path,
        "from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer as Zero\n"
        "from megaokd.distill import objective\n"
        "original, reduce = objective.HiddenStateLoss.__call__, Zero.average_tensor\n"
        "calls = 0\n"
        "def broken(*arguments, **options):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 6:\n"
        "        raise RuntimeError('in the second micro-batch of the second step')\n"
        "    return original(*arguments, **options)\n"
        "def average_tensor(*arguments):\n"
        "    print('reduced', file=sys.stderr)\n"
        "    return reduce(*arguments)\n"
        "objective.HiddenStateLoss.__call__, Zero.average_tensor = broken, average_tensor\n",
    )
    result = forked(0, program, write(tmp_path / "run.yaml", tiny_world.config(tmp_path / "run")))
    assert result.returncode == 1
    assert "in the second micro-batch of the second step" in result.stderr
    assert result.stderr.count("reduced") == 1


def test_the_interpreter_is_not_taken_down_beside_threads_of_gloo(tiny_world: TinyWorld, tmp_path: Path) -> None:
    """Where it is, one run in many aborts after its end; what wants to know of the exit is told all the same."""
    program = broken_training(
        tmp_path,
        "import atexit\n"
        "atexit.register(print, 'exit functions were called', flush=True)\n"
        "class Last:\n"
        "    def __del__(self):\n"
        "        print('the interpreter was taken down', flush=True)\n"
        "last = Last()\n",
    )
    config = write(tmp_path / "run.yaml", tiny_world.config(tmp_path / "run"))
    result = must(torchrun(2, program, config, "train.steps=1", timeout=120))
    assert result.stdout.count("exit functions were called") == 2
    assert "the interpreter was taken down" not in result.stdout


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown key": (("parallel.tensr=2",), "did you mean 'tensor'"),
    "missing data": (("data.train=/nowhere",), "/nowhere"),
    "missing teacher": (("teacher.path=/nowhere",), "/nowhere/config.json"),
    "heads": (
        (
            "parallel={tensor: 2, student_tensor: 2}",
            "student.path=null",
            "student.architecture={num_heads: 3, hidden_size: 48}",
        ),
        "parallel.tensor=2 does not fit the student: 3 attention heads",
    ),
    "layers": (("parallel.pipeline=2", "parallel.virtual_stages=3", "parallel.schedule=interleaved1f1b"), "4 layers"),
    "world size": (("parallel.tensor=3",), "does not divide the number of processes, 2"),
    "own keys": (("parallel.tensor=2", "deepspeed={bf16: {enabled: true}}"), "deepspeed.bf16 is set by"),
    "NaN": (("parallel.tensor=2", "optimizer.student.lr=1e30", "optimizer.student.clip=0"), "no update was made"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_every_rank_with_one_sentence(case: str, tiny_world: TinyWorld, tmp_path: Path) -> None:
    overrides, expected = BAD[case]
    config = write(tmp_path / "run.yaml", tiny_world.config(tmp_path / "run"))
    result = torchrun(2, *CLI, config, *overrides, timeout=120)
    assert result.returncode != 0
    assert expected in result.stderr
    # The launcher prints a traceback of its own; ours would name a file of the package.
    assert f'File "{ROOT}/megaokd' not in result.stderr


def test_tokenizer_mismatch(tiny_world: TinyWorld, tmp_path: Path) -> None:
    other = tmp_path / "other"
    run("tokenizer", "--input", tiny_world.root / "train.jsonl", "--output", other, "--vocab-size", "300")
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    for file in (*Path(tiny_world.teacher).iterdir(), *other.iterdir()):
        (teacher / file.name).write_bytes(file.read_bytes())
    config = write(tmp_path / "run.yaml", tiny_world.config(tmp_path / "run", teacher={"path": str(teacher)}))
    result = forked(0, *CLI, config)
    assert result.returncode == 2
    assert "the tokenizer of the teacher" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_folder_with_checkpoints_is_not_overwritten(
    tiny_world: TinyWorld, uninterrupted: Path, tmp_path: Path
) -> None:
    config = write(tmp_path / "run.yaml", tiny_world.config(uninterrupted))
    result = forked(0, *CLI, config)
    assert result.returncode == 2
    assert "already holds checkpoints" in result.stderr
    result = forked(0, *CLI, config, "train.resume=auto", "train.seed=7")
    assert "seed was 0" in result.stderr
