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

from megaokd.config import Config, OnlineModules
from megaokd.config_file import parse_config
from megaokd.data.batch import BatchShape
from megaokd.data.batches import BatchOptions, TrainBatches
from megaokd.data.dataset import TokenDataset
from megaokd.methods import METHODS
from megaokd.models.huggingface_config import read_architecture
from megaokd.models.initialize import seeded_generator
from tests.reference import okd
from tests.support.launch import forked, must
from tests.support.tiny import TinyWorld, short_data

WORKER = Path(__file__).with_name("layout_worker.py")
TOLERANCE = 1e-5

OBJECTIVE: dict[str, Any] = {
    "student": {"ce": 1.0, "forward_kl": 0.7, "jsd(0.3)": 0.3},
    "teacher": {"ce": 0.8, "reverse_kl": 0.2},
    "temperature": 1.5,
}
Sections = dict[str, dict[str, Any]]
Layout = tuple[int, dict[str, Any], Sections]
# name -> (processes, parallel section, other sections)
LAYOUTS: dict[str, Layout] = {
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
    # The student split less than the teacher: groups of ranks with rows of their own.
    "tp2_student1_loss_on_logits": (
        2,
        {"tensor": 2, "student_tensor": 1},
        {"objective": {**OBJECTIVE, "fused": False}},
    ),
    "tp4_student1": (4, {"tensor": 4, "student_tensor": 1}, {"train": {"micro_batch": 4}}),
    "tp4_student2_sequence_parallel": (
        4,
        {"tensor": 4, "student_tensor": 2, "sequence_parallel": True, "recompute": True},
        {},
    ),
    "tp2_dp2_student1_zero2": (4, {"tensor": 2, "student_tensor": 1}, {"train": {"zero_stage": 2}}),
    "tp2_pp2_student1_sequence_parallel": (
        4,
        {"tensor": 2, "pipeline": 2, "student_tensor": 1, "sequence_parallel": True},
        {},
    ),
}


def optimizer(*, student_clip: float, online_clip: float) -> dict[str, Any]:
    return {
        "student": {"lr": 2e-3, "clip": student_clip, "warmup_steps": 2},
        "online": {"lr": 1e-3, "clip": online_clip, "schedule": "linear", "weight_decay": 0.05},
    }


OPTIONS: Sections = {"optimizer": optimizer(student_clip=1.0, online_clip=0.4), "objective": OBJECTIVE}
# Other modules and terms: name -> (sections of the run, what is laid out how). Every term of the loss is on one side or
# the other. In the one with an anchor the lowest module lies inside a stage, between two, and above an interleaved one.
SETUPS: dict[str, tuple[Sections, dict[str, Layout]]] = {
    "lora_some": (
        {
            "teacher": {"online": {"rank": 3, "alpha": 6.0, "layers": 1, "targets": ["q_proj", "v_proj", "down_proj"]}},
            "objective": {
                "student": {"skew_forward_kl(0.2)": 1.0, "tvd": 0.5, "forward_kl_top(5)": 0.5},
                "teacher": {"ce": 1.0, "tvd": 0.3, "forward_kl_top(20)": 0.2},
            },
            "optimizer": optimizer(student_clip=0.3, online_clip=0.1),
        },
        {"lora_some_tp2_pp2": (4, {"tensor": 2, "pipeline": 2}, {})},
    ),
    "bottleneck": (
        {
            "teacher": {"online": {"kind": "bottleneck", "rank": 4, "alpha": 8.0, "layers": 3}},
            "objective": {
                "student": {"ce": 1.0, "skew_reverse_kl": 0.5, "jsd": 0.3, "jsd(0.9)": 0.2},
                "teacher": {"ce": 0.8, "forward_kl": 0.2, "anchor": 0.7},
                "temperature": 1.5,
            },
            "optimizer": optimizer(student_clip=1.0, online_clip=0.2),
        },
        {
            "bottleneck_tp1": (1, {"recompute": True}, {}),
            "bottleneck_tp2_loss_on_logits": (2, {"tensor": 2}, {"objective": {"fused": False}}),
            "bottleneck_pp2_interleaved": LAYOUTS["pp2_interleaved"],
            "bottleneck_tp4_sequence_parallel": LAYOUTS["tp4_sequence_parallel"],
            "bottleneck_tp2_pp2_sequence_parallel": LAYOUTS["tp2_pp2_sequence_parallel"],
        },
    ),
    "head": (
        {
            "teacher": {"online": {"kind": "head", "rank": 4, "alpha": 8.0}},
            "objective": {
                "student": {"ce": 1.0, "reverse_kl": 0.5},
                "teacher": {"ce": 1.0, "jsd(0.2)": 0.5, "skew_forward_kl": 0.2, "anchor": 0.3},
            },
            "optimizer": optimizer(student_clip=1.0, online_clip=0.1),
        },
        {
            "head_dp2": (2, {}, {}),
            "head_tp2_pp2_sequence_parallel": LAYOUTS["tp2_pp2_sequence_parallel"],
        },
    ),
}
COMPARED = dict.fromkeys(LAYOUTS, "lora") | {name: setup for setup, (_, cases) in SETUPS.items() for name in cases}
"""Case -> whose reference it must agree with."""
# The student from scratch, whose initial weights must not depend on the layout; and bf16.
SCRATCH: Sections = {
    "student": {"path": None, "architecture": {"hidden_size": 16, "num_kv_heads": 2, "num_layers": 4}},
    "train": {"steps": 3},
}
UNTIED: Sections = {
    "student": {"path": None, "architecture": {"hidden_size": 16, "num_layers": 2, "tied_head": False}},
    "train": {"steps": 3},
}
PACKED: Sections = {"data": {"packing": True, "train": "SHORT"}, "train": {"steps": 4}}
BF16: Sections = {"train": {"steps": 3, "precision": "bf16"}, "teacher": {"dtype": "bfloat16"}}
OTHER: dict[str, Layout] = {
    "scratch": (1, {}, SCRATCH),
    "scratch_untied": (1, {}, UNTIED),
    "scratch_untied_pp2": (2, {"pipeline": 2}, UNTIED),
    "scratch_tp4": (4, {"tensor": 4}, SCRATCH),
    "scratch_tp2_pp2": (4, {"tensor": 2, "pipeline": 2}, SCRATCH),
    "scratch_untied_tp4_student2": (4, {"tensor": 4, "student_tensor": 2}, UNTIED),
    "packed": (1, {}, PACKED),
    "packed_pp2": (2, {"pipeline": 2}, PACKED),
    "packed_tp2_student1": (2, {"tensor": 2, "student_tensor": 1}, PACKED),
    "packed_tp2_pp2": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": True, "recompute": True}, PACKED),
    "bf16": (1, {}, BF16),
    "bf16_tp2_pp2": (4, {"tensor": 2, "pipeline": 2, "sequence_parallel": True}, BF16),
}
PACKED_LAYOUTS = {
    "lora": ("packed", "packed_pp2", "packed_tp2_student1", "packed_tp2_pp2"),
    "bottleneck": ("bottleneck_packed_pp2",),
}
"""Setup -> cases that must take the steps of its reference with the examples of PACKED apart."""


def sections_of(setup: str) -> Sections:
    return OPTIONS if setup == "lora" else OPTIONS | SETUPS[setup][0]


def merged(base: Sections, changes: Sections) -> Sections:
    return {name: {**base.get(name, {}), **changes.get(name, {})} for name in base | changes}


@pytest.fixture(scope="module")
def results(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layout, one launch per number of processes."""
    folder = tmp_path_factory.mktemp("layouts")
    runs = {name: (OPTIONS, layout) for name, layout in (LAYOUTS | OTHER).items()}
    for setup, (_, layouts) in SETUPS.items():
        runs |= {name: (sections_of(setup), layout) for name, layout in layouts.items()}
    runs["bottleneck_packed_pp2"] = (sections_of("bottleneck"), OTHER["packed_pp2"])
    for processes in (1, 2, 4):
        cases = {
            name: tiny_world.config(
                folder / name, parallel=as_teacher(parallel), **with_short(merged(base, sections), tiny_world)
            )
            for name, (base, (count, parallel, sections)) in runs.items()
            if count == processes
        }
        if processes == 1:
            cases |= {f"method_{name}": method_config(tiny_world, folder, name) for name in METHODS}
        (folder / f"cases{processes}.json").write_text(json.dumps(cases))
        must(forked(processes, WORKER, folder / f"cases{processes}.json", folder))
    return folder


def as_teacher(parallel: dict[str, Any]) -> dict[str, Any]:
    """The student split as the teacher is, where nothing else is said."""
    return {"student_tensor": parallel.get("tensor", 1), **parallel}


def with_short(sections: Sections, world: TinyWorld) -> Sections:
    """`sections` with examples of which several fit into a row, in the place of SHORT."""
    if sections.get("data", {}).get("train") != "SHORT":
        return sections
    return {**sections, "data": {**sections["data"], "train": short_data(world)}}


def method_config(world: TinyWorld, folder: Path, method: str) -> dict[str, Any]:
    """One step of a method, on the data's text. All share this file; what a method has no use for in it is ignored."""
    return {**world.config(folder / method, train={"steps": 1, "validate_every": 1}), "method": method}


@pytest.fixture(scope="module")
def references(tiny_world: TinyWorld) -> dict[str, okd.History]:
    """The same ten steps in one process, unsharded, in plain torch."""
    configs = {name: tiny_world.config(Path("unused"), **sections_of(name)) for name in ("lora", *SETUPS)}
    return {setup: reference(tiny_world, parse_config(config)) for setup, config in configs.items()}


def reference(world: TinyWorld, config: Config) -> okd.History:
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
    online = config.teacher.online
    return okd.train(
        load_file(world.root / "teacher" / "model.safetensors") if config.teacher.path else None,
        load_file(world.root / "student" / "model.safetensors"),
        initial_modules(world, online, config.train.seed) if online else None,
        [(batch.tokens[0], batch.labels[0]) for batch in whole],
        student_dims=dims(world.student, dataset.vocab_size),
        teacher_dims=dims(world.teacher, dataset.vocab_size),
        alpha=online.alpha if online else 0.0,
        objective=okd.Objective(
            student=config.objective.student,
            teacher=config.objective.teacher,
            temperature=config.objective.temperature,
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


def initial_modules(world: TinyWorld, online: OnlineModules, seed: int) -> dict[str, torch.Tensor]:
    """The documented initial values: uniform in +-1/sqrt(in) from the tensor's own stream; the last matrix zero."""
    arch = read_architecture(world.teacher)
    weights = {}

    def add(ours: str, theirs: str, names: tuple[str, str], in_size: int, out_size: int) -> None:
        generator = seeded_generator(seed, f"{ours}.{names[0]}")
        bound = in_size**-0.5
        weights[f"{theirs}.{names[0]}"] = torch.empty(online.rank, in_size).uniform_(-bound, bound, generator=generator)
        weights[f"{theirs}.{names[1]}"] = torch.zeros(out_size, online.rank)

    if online.kind == "head":
        add("online", "model", ("down", "up"), arch.hidden_size, arch.hidden_size)
    for layer in range(arch.num_layers - (online.layers or 0), arch.num_layers):
        if online.kind == "bottleneck":
            name = f"layers.{layer}"
            add(f"{name}.online", f"model.{name}", ("down", "up"), arch.hidden_size, arch.hidden_size)
            continue
        for linear, (out_size, in_size) in okd.linear_shapes(dims(world.teacher, arch.vocab_size)).items():
            if linear in (online.targets or okd.LINEARS):
                name = f"layers.{layer}.{okd.LINEARS[linear]}.{linear}"
                add(f"{name}.online", f"model.{name}", ("lora_A", "lora_B"), in_size, out_size)
    return weights


@pytest.mark.parametrize("layout", COMPARED)
def test_layout_takes_the_reference_steps(layout: str, results: Path, references: dict[str, okd.History]) -> None:
    reference = references[COMPARED[layout]]
    clips = sections_of(COMPARED[layout])["optimizer"]
    assert max(reference.student_grad_norm) > clips["student"]["clip"], "clipping is not active"
    assert max(reference.online_grad_norm) > clips["online"]["clip"], "clipping is not active"
    compare_steps(json.loads((results / f"{layout}.json").read_text()), reference)


def test_packed_rows_take_the_steps_of_their_examples_alone(tiny_world: TinyWorld, results: Path) -> None:
    """In the reference the examples of packed rows each have a row of their own."""
    for setup, layouts in PACKED_LAYOUTS.items():
        sections = with_short(merged(sections_of(setup), PACKED), tiny_world)
        expected = reference(tiny_world, parse_config(tiny_world.config(Path("unused"), **sections)))
        for layout in layouts:
            compare_steps(json.loads((results / f"{layout}.json").read_text()), expected)


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


@pytest.mark.parametrize("layout", COMPARED)
def test_layout_ends_with_the_reference_weights(layout: str, results: Path, references: dict[str, okd.History]) -> None:
    final = load_file(results / f"{layout}.safetensors")
    reference = references[COMPARED[layout]]
    student = {f"model.{k.removeprefix('student.')}": v for k, v in final.items() if k.startswith("student.")}
    online = {
        f"model{k.removeprefix('online').replace('.online.', '.')}": v
        for k, v in final.items()
        if k.startswith("online.")
    }
    assert student.keys() == reference.student.keys()
    assert online.keys() == reference.online.keys()
    for name, expected in {**reference.student, **reference.online}.items():
        found = {**student, **online}[name]
        error = ((found - expected).norm() / expected.norm()).item()
        assert error <= TOLERANCE, f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("layout", COMPARED)
def test_every_rank_knows_the_norms_of_all_modules(
    layout: str, results: Path, references: dict[str, okd.History]
) -> None:
    weights = references[COMPARED[layout]].online
    expected = {}
    for last, end in weights.items():
        place, _, matrix = last.rpartition(".")
        if matrix in ("lora_B", "up"):
            first = weights[f"{place}.{'lora_A' if matrix == 'lora_B' else 'down'}"]
            expected[place.removeprefix("model").lstrip(".") or "head"] = 2.0 * (end @ first).norm().item()
    assert expected
    for rank in json.loads((results / f"{layout}.facts.json").read_text()):
        assert rank["module_norms"] == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("method", METHODS)
def test_one_step_of_each_method(method: str, results: Path, tiny_world: TinyWorld) -> None:
    (found,) = json.loads((results / f"method_{method}.json").read_text())
    expected = reference(tiny_world, parse_config(method_config(tiny_world, Path("unused"), method)))
    assert found["student_loss"] == pytest.approx(expected.student_loss[0], rel=TOLERANCE)
    assert found["teacher_loss"] == pytest.approx(expected.teacher_loss[0], rel=TOLERANCE)
    assert found["norms"]["student"] == pytest.approx(expected.student_grad_norm[0], rel=TOLERANCE)
    assert found["norms"].get("online", 0.0) == pytest.approx(expected.online_grad_norm[0], rel=TOLERANCE)
    assert ("online" in found["norms"]) == (METHODS[method].kind is not None)
    assert ("forward_kl" in found) == METHODS[method].has_teacher


@pytest.mark.parametrize(
    ("layout", "single"),
    [
        ("scratch_tp4", "scratch"),
        ("scratch_tp2_pp2", "scratch"),
        ("scratch_untied_pp2", "scratch_untied"),
        ("scratch_untied_tp4_student2", "scratch_untied"),
    ],
)
def test_initial_weights_do_not_depend_on_the_layout(layout: str, single: str, results: Path) -> None:
    expected, found = (json.loads((results / f"{name}.json").read_text()) for name in (single, layout))
    for one, other in zip(expected, found, strict=True):
        assert other["student_loss"] == pytest.approx(one["student_loss"], rel=TOLERANCE)
        assert other["norms"] == pytest.approx(one["norms"], rel=TOLERANCE)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "student" in name and "pp2" not in name])
def test_a_student_in_row_groups_generates(layout: str, results: Path) -> None:
    (single,) = json.loads((results / "tp1_pp1_dp1.facts.json").read_text())
    for rank in json.loads((results / f"{layout}.facts.json").read_text()):
        assert rank["generated"] == single["generated"]


@pytest.mark.parametrize("layout", ["bf16", "bf16_tp2_pp2"])
def test_bf16_stays_near_fp32(layout: str, results: Path) -> None:
    """bf16 keeps 8 bits: products are off by up to 2^-9 each; over these small sums losses by well under a percent."""
    expected, found = (json.loads((results / f"{name}.json").read_text()) for name in ("tp1_pp1_dp1", layout))
    for one, other in zip(expected[:3], found, strict=True):
        assert other["student_loss"] == pytest.approx(one["student_loss"], rel=5e-3)
        assert other["norms"] == pytest.approx(one["norms"], rel=5e-2)
        assert other["student_loss"] != one["student_loss"], "bf16 was not used"


@pytest.mark.parametrize("layout", COMPARED)
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


@pytest.mark.parametrize("layout", [*LAYOUTS, "bf16", "bf16_tp2_pp2"])
def test_nothing_of_the_teacher_is_kept_but_weights_and_modules(layout: str, results: Path) -> None:
    """Counted on every rank: frozen weights once, in their own dtype; for training 16 bytes a trainable parameter, of
    which 12 are shared by the data-parallel ranks; nothing kept for backward below the modules, something above; by a
    validation nothing.
    """
    itemsize, dtype = (2, "torch.bfloat16") if layout.startswith("bf16") else (4, "torch.float32")
    for rank in json.loads((results / f"{layout}.facts.json").read_text()):
        assert rank["frozen_dtypes"] == [dtype]
        assert rank["frozen_bytes"] == itemsize * rank["frozen_elements"]
        assert rank["copies_of_frozen"] == 0
        assert rank["training_bytes"] <= 4 * rank["trainable"] + 12 * rank["moments"] + 1024
        for moves, kept in rank["kept_by_teacher"]:
            assert (kept > 0) == moves
        assert rank["kept_by_validation"] == 0
