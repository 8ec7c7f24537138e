"""Ten steps of OKD in every layout against one unsharded process written in plain torch (tests/reference/okd.py).

fp32, modules on the teacher's upper half, both groups clipped. Compared: losses of both objectives, both groups'
gradient norms before clipping, and every final weight. The tiny models make each case meet a hard spot: 2 KV heads on 4
ranks (replicated), 301 tokens on 2 and 4 ranks (padding), a teacher padded to 320 rows, a student with a tied head.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megaokd.config_file import parse_config
from megaokd.data.batches import BatchOptions, BatchShape, TrainBatches
from megaokd.data.dataset import TokenDataset
from megaokd.distill.online_modules import first_online_layer
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.initialize import seeded_generator
from tests.reference import okd
from tests.support.launch import must, torchrun
from tests.support.tiny import TinyWorld, run

WORKER = Path(__file__).with_name("layout_worker.py")
TOLERANCE = 1e-5

OBJECTIVE: dict[str, Any] = {
    "student": {"ce": 1.0, "forward_kl": 0.7, "jsd": 0.3},
    "teacher": {"ce": 0.8, "reverse_kl": 0.2},
    "temperature": 1.5,
    "jsd_beta": 0.3,
}
# name -> (processes, parallel section, other sections)
LAYOUTS: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "tp1_pp1_dp1": (1, {}, {}),
    "recompute": (1, {"recompute": True}, {}),
    "tp2": (2, {"tensor": 2}, {}),
    "tp2_loss_on_logits": (2, {"tensor": 2}, {"objective": {**OBJECTIVE, "fused": False}}),
    "pp2": (2, {"pipeline": 2}, {}),
    "dp2": (2, {}, {}),
    "dp2_zero2": (2, {}, {"train": {"zero_stage": 2}}),
    "pp2_interleaved": (2, {"pipeline": 2, "virtual_stages": 2, "schedule": "interleaved1f1b"}, {}),
    "tp2_pp2": (4, {"tensor": 2, "pipeline": 2}, {}),
    "tp2_dp2": (4, {"tensor": 2}, {}),
    "pp2_dp2": (4, {"pipeline": 2}, {}),
    "tp4": (4, {"tensor": 4}, {}),
    "pp4": (4, {"pipeline": 4}, {}),
    "tp4_sequence_parallel": (4, {"tensor": 4, "sequence_parallel": True, "recompute": True}, {}),
    "tp2_pp2_sequence_parallel": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": True}, {}),
}
# The student from scratch, whose initial weights must not depend on the layout; and bf16.
SCRATCH: dict[str, Any] = {
    "student": {"path": None, "architecture": {"hidden_size": 16, "num_kv_heads": 2, "num_layers": 4}},
    "train": {"steps": 3},
}
UNTIED: dict[str, Any] = {
    "student": {"path": None, "architecture": {"hidden_size": 16, "num_layers": 2, "tied_head": False}},
    "train": {"steps": 3},
}
PACKED: dict[str, Any] = {"data": {"packing": True, "train": "SHORT"}, "train": {"steps": 4}}
BF16: dict[str, Any] = {"train": {"steps": 3, "precision": "bf16"}, "teacher": {"dtype": "bfloat16"}}
OTHER: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "scratch": (1, {}, SCRATCH),
    "scratch_untied": (1, {}, UNTIED),
    "scratch_untied_pp2": (2, {"pipeline": 2}, UNTIED),
    "scratch_tp4": (4, {"tensor": 4}, SCRATCH),
    "scratch_tp2_pp2": (4, {"tensor": 2, "pipeline": 2}, SCRATCH),
    "packed": (1, {}, PACKED),
    "packed_pp2": (2, {"pipeline": 2}, PACKED),
    "packed_tp2_pp2": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": True, "recompute": True}, PACKED),
    "bf16": (1, {}, BF16),
    "bf16_tp2_pp2": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": True}, BF16),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "optimizer": {
        "student": {"lr": 2e-3, "clip": 1.0, "warmup_steps": 2},
        "online": {"lr": 1e-3, "clip": 0.4, "schedule": "linear", "weight_decay": 0.05},
    },
    "objective": OBJECTIVE,
}


@pytest.fixture(scope="module")
def results(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout, one launch per number of processes."""
    folder = tmp_path_factory.mktemp("layouts")
    for processes in (1, 2, 4):
        cases = {
            name: tiny_world.config(folder / name, parallel=parallel, **(OPTIONS | with_short(sections, tiny_world)))
            for name, (count, parallel, sections) in (LAYOUTS | OTHER).items()
            if count == processes
        }
        (folder / f"cases{processes}.json").write_text(json.dumps(cases))
        must(torchrun(processes, WORKER, folder / f"cases{processes}.json", folder))
    return folder


def with_short(sections: dict[str, Any], world: TinyWorld) -> dict[str, Any]:
    """`sections` with examples of which several fit into a row, in the place of SHORT."""
    if sections.get("data", {}).get("train") != "SHORT":
        return sections
    folder = world.root / "short"
    if not folder.exists():
        records = [{"prompt": f"item {n}", "response": f" is {n * 7}" * (n % 5 + 1)} for n in range(90)]
        (world.root / "short.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
        run(
            "preprocess",
            "--input",
            world.root / "short.jsonl",
            "--tokenizer",
            world.root / "tokenizer",
            "--output",
            folder,
        )
    return {**sections, "data": {**sections["data"], "train": str(folder)}}


@pytest.fixture(scope="module")
def reference(tiny_world: TinyWorld) -> okd.History:
    """The same ten steps in one process, unsharded, in plain torch."""
    return reference_run(tiny_world)


def reference_run(tiny_world: TinyWorld, **sections: dict[str, Any]) -> okd.History:
    """In plain torch; the examples of packed rows each have a row of their own here."""
    config = parse_config(tiny_world.config(Path("unused"), **(OPTIONS | sections)))
    dataset = TokenDataset(config.data.train)
    data, train = config.data, config.train
    shape = BatchShape(
        sequence_length=data.sequence_length,
        bucket=data.bucket,
        global_batch=train.global_batch,
        micro_batch=train.global_batch,
    )
    batches = TrainBatches(dataset, shape, seed=train.seed, options=BatchOptions(packing=data.packing))
    examples = [batches.examples(step) for step in range(train.steps)]
    assert len(examples[0]) > train.global_batch or not data.packing, "no row is shared"
    whole = [
        dataclasses.replace(shape, global_batch=len(numbers), micro_batch=len(numbers)).batch(dataset, numbers)
        for numbers in examples
    ]
    assert config.teacher.online is not None
    return okd.train(
        load_file(tiny_world.root / "teacher" / "model.safetensors"),
        load_file(tiny_world.root / "student" / "model.safetensors"),
        initial_lora(tiny_world, rank=config.teacher.online.rank),
        [(batch.tokens[0], batch.labels[0]) for batch in whole],
        student_dims=dims(tiny_world.student, dataset.vocab_size),
        teacher_dims=dims(tiny_world.teacher, dataset.vocab_size),
        lora_alpha=config.teacher.online.alpha,
        objective=okd.Objective(
            student=config.objective.student,
            teacher=config.objective.teacher,
            temperature=config.objective.temperature,
            jsd_beta=config.objective.jsd_beta,
        ),
        student_group=okd.Group(**dataclasses.asdict(config.optimizer.student)),
        online_group=okd.Group(**dataclasses.asdict(config.optimizer.online)),
        dtype=torch.float32,
    )


def dims(folder: str, vocab_size: int) -> okd.Dims:
    arch = read_architecture(folder)
    assert arch.rotary is not None
    given = {"vocab_size": vocab_size, "rope_theta": arch.rotary.theta}
    names = {field.name for field in dataclasses.fields(okd.Dims)} - given.keys()
    return okd.Dims(**given, **{name: getattr(arch, name) for name in names})


def initial_lora(world: TinyWorld, *, rank: int) -> dict[str, torch.Tensor]:
    """The documented initial values: B zero, A uniform in +-1/sqrt(in) from the tensor's own stream."""
    arch = read_architecture(world.teacher)
    config = parse_config(world.config(Path("unused")))
    assert config.teacher.online is not None
    weights = {}
    for layer in range(first_online_layer(config.teacher.online, arch.num_layers), arch.num_layers):
        for linear, (out_size, in_size) in okd.linear_shapes(dims(world.teacher, arch.vocab_size)).items():
            name = f"layers.{layer}.{okd.LINEARS[linear]}.{linear}"
            generator = seeded_generator(config.train.seed, f"{name}.online.lora_A")
            bound = in_size**-0.5
            weights[f"model.{name}.lora_A"] = torch.empty(rank, in_size).uniform_(-bound, bound, generator=generator)
            weights[f"model.{name}.lora_B"] = torch.zeros(out_size, rank)
    return weights


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_takes_the_reference_steps(layout: str, results: Path, reference: okd.History) -> None:
    assert max(reference.student_grad_norm) > 1.0, "clipping is not active"
    assert max(reference.online_grad_norm) > 0.4, "clipping is not active"
    compare_steps(json.loads((results / f"{layout}.json").read_text()), reference)


def test_packed_rows_take_the_steps_of_their_examples_alone(tiny_world: TinyWorld, results: Path) -> None:
    reference = reference_run(tiny_world, **with_short(PACKED, tiny_world))
    for layout in ("packed", "packed_pp2", "packed_tp2_pp2"):
        compare_steps(json.loads((results / f"{layout}.json").read_text()), reference)


def compare_steps(history: list[dict[str, Any]], reference: okd.History) -> None:
    assert len(history) == len(reference.student_loss)
    for step, record in enumerate(history):
        expected = {
            "student_loss": reference.student_loss[step],
            "teacher_loss": reference.teacher_loss[step],
            "student norm": reference.student_grad_norm[step],
            "online norm": reference.online_grad_norm[step],
        }
        found = {
            "student_loss": record["student_loss"],
            "teacher_loss": record["teacher_loss"],
            "student norm": record["norms"]["student"],
            "online norm": record["norms"]["online"],
        }
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=TOLERANCE), f"step {step}: {name}"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_ends_with_the_reference_weights(layout: str, results: Path, reference: okd.History) -> None:
    final = load_file(results / f"{layout}.safetensors")
    student = {f"model.{k.removeprefix('student.')}": v for k, v in final.items() if k.startswith("student.")}
    lora = {
        f"model.{k.removeprefix('online.').replace('.online.', '.')}": v
        for k, v in final.items()
        if k.startswith("online.")
    }
    assert student.keys() == reference.student.keys()
    assert lora.keys() == reference.lora.keys()
    for name, expected in {**reference.student, **reference.lora}.items():
        found = {**student, **lora}[name]
        error = ((found - expected).norm() / expected.norm()).item()
        assert error <= TOLERANCE, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize(
    ("layout", "single"),
    [("scratch_tp4", "scratch"), ("scratch_tp2_pp2", "scratch"), ("scratch_untied_pp2", "scratch_untied")],
)
def test_initial_weights_do_not_depend_on_the_layout(layout: str, single: str, results: Path) -> None:
    expected, found = (json.loads((results / f"{name}.json").read_text()) for name in (single, layout))
    for one, other in zip(expected, found, strict=True):
        assert other["student_loss"] == pytest.approx(one["student_loss"], rel=TOLERANCE)
        assert other["norms"] == pytest.approx(one["norms"], rel=TOLERANCE)


@pytest.mark.parametrize("layout", ["bf16", "bf16_tp2_pp2"])
def test_bf16_stays_near_fp32(layout: str, results: Path) -> None:
    """bf16 keeps 8 bits: products are off by up to 2^-9 each; over these small sums losses by well under a percent."""
    expected, found = (json.loads((results / f"{name}.json").read_text()) for name in ("tp1_pp1_dp1", layout))
    for one, other in zip(expected[:3], found, strict=True):
        assert other["student_loss"] == pytest.approx(one["student_loss"], rel=5e-3)
        assert other["norms"] == pytest.approx(one["norms"], rel=5e-2)
        assert other["student_loss"] != one["student_loss"], "bf16 was not used"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_frozen_teacher_stays_frozen_and_costs_no_state(layout: str, results: Path) -> None:
    for rank in json.loads((results / f"{layout}.facts.json").read_text()):
        assert not rank["frozen_changed"]
        assert rank["frozen_gradients"] == 0
        assert not rank["teacher_in_train_mode"]
        # ZeRO pads each of at most four groups to its alignment.
        assert (
            rank["trainable"] / rank["data_parallel"]
            <= rank["moments"]
            <= rank["trainable"] / rank["data_parallel"] + 64
        )
