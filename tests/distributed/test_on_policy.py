"""Steps on the student's own text: the same in every layout, continued bit for bit, and of the right text."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from megaokd.data.batch import BatchShape
from megaokd.data.batches import TrainBatches
from megaokd.data.dataset import TokenDataset
from megaokd.data.tokenizer import load_tokenizer
from tests.distributed.test_checkpoints import launch, run_of
from tests.distributed.test_runs import losses
from tests.support.tiny import TinyWorld

STEPS, SAVED_AT = 8, 4
METHOD: dict[str, Any] = {"objective": {"student": {"ce": 1.0, "jsd": 1.0}, "teacher": {"ce": 1.0, "forward_kl": 0.1}}}
SAMPLED = {"probability": 0.6, "max_new_tokens": 12, "top_p": 0.95}
ADAPTIVE = {
    "probability": 0.9, "max_new_tokens": 6, "adaptive": {"capacity": 16, "tolerance": 0.0, "increase": 0.05}
}  # fmt: skip
GREEDY = {"probability": 1.0, "max_new_tokens": 12, "temperature": 0.0}


def of(world: TinyWorld, folder: Path, parallel: dict[str, Any], on_policy: dict[str, Any], **train: Any) -> Any:
    run = run_of(
        world, folder, parallel, **METHOD, checkpoint={"folder": str(folder), "every": SAVED_AT, "export": False}
    )
    run["config"]["train"] = {**run["config"]["train"], "steps": STEPS, "on_policy": on_policy, **train}
    return run


@pytest.fixture(scope="module")
def folders(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one`, `tensor` and `data` are one run in three layouts; `continued` is the second half of `tensor`. The same
    with a schedule: `adaptive`, `adaptive-data`, and `adaptive-continued` of the first.
    """
    root = tmp_path_factory.mktemp("on_policy")
    two = {"tensor": 2, "sequence_parallel": True}
    later = of(tiny_world, root / "continued", two, SAMPLED)
    later["start_from"] = str(root / "tensor" / "checkpoints" / f"step-{SAVED_AT:08d}")
    watched = {"validate_every": 2, "validation_batches": 1}
    again = of(tiny_world, root / "adaptive-continued", {}, ADAPTIVE, **watched)
    again["start_from"] = str(root / "adaptive" / "checkpoints" / f"step-{SAVED_AT:08d}")
    launch(2, root / "two.json", [
        of(tiny_world, root / "tensor", two, SAMPLED), later, of(tiny_world, root / "data", {}, SAMPLED, zero_stage=2),
        of(tiny_world, root / "adaptive-data", {}, ADAPTIVE, **watched),
    ])  # fmt: skip
    launch(1, root / "one.json", [
        of(tiny_world, root / "one", {}, SAMPLED), of(tiny_world, root / "greedy", {}, GREEDY, steps=1),
        of(tiny_world, root / "adaptive", {}, ADAPTIVE, **watched), again,
    ])  # fmt: skip
    return root


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == "train"]


@pytest.mark.parametrize(("layout", "alone"), [("tensor", "one"), ("data", "one"), ("adaptive-data", "adaptive")])
def test_every_layout_takes_the_same_steps(layout: str, alone: str, folders: Path) -> None:
    expected = losses(folders / alone)
    for step, values in losses(folders / layout).items():
        assert values == pytest.approx(expected[step], rel=1e-5), step
    for name in ("on_policy/generated", "on_policy/replayed", "on_policy/probability"):
        assert [line.get(name) for line in lines(folders / alone)] == [
            line.get(name) for line in lines(folders / layout)
        ]


def test_some_steps_are_on_the_students_text(folders: Path) -> None:
    drawn = [line["on_policy/generated"] for line in lines(folders / "one")]
    assert 0.0 in drawn
    assert drawn.count(1.0) >= 3


@pytest.mark.parametrize(("part", "of_run"), [("continued", "tensor"), ("adaptive-continued", "adaptive")])
def test_a_continued_run_trains_on_what_it_would_have(part: str, of_run: str, folders: Path) -> None:
    whole = losses(folders / of_run)
    assert losses(folders / part) == {step: whole[step] for step in range(SAVED_AT + 1, STEPS + 1)}


def test_a_full_buffer_is_drawn_from(folders: Path) -> None:
    replayed = [line["on_policy/replayed"] for line in lines(folders / "adaptive")]
    assert sum(replayed[:2]) == 0.0, "16 rows are two steps of 8"
    assert 1.0 in replayed[SAVED_AT:], "the continued run would not need the buffer"


def test_the_schedule_compares_with_the_student_before_the_first_step(folders: Path) -> None:
    records = [json.loads(line) for line in (folders / "adaptive" / "log.jsonl").read_text().splitlines()]
    validations = {line["step"]: line["validation/student_ce"] for line in records if line["kind"] == "validation"}
    assert sorted(validations) == [0, 2, 4, 6, 8]
    probability = next(line["on_policy/probability"] for line in lines(folders / "adaptive") if line["step"] == 3)
    assert probability == pytest.approx(0.95 if validations[2] >= validations[0] else 0.9)


@pytest.mark.parametrize("name", ["adaptive", "adaptive-continued"])
def test_steps_on_the_students_text_are_counted(name: str, folders: Path) -> None:
    summary = json.loads((folders / name / "summary.json").read_text())
    for kind in ("generated", "replayed"):
        assert summary[f"{kind}_steps"] == sum(line[f"on_policy/{kind}"] for line in lines(folders / "adaptive")) > 0


def test_the_loss_is_that_of_what_transformers_writes(tiny_world: TinyWorld, folders: Path) -> None:
    """Greedy responses of the initial student, and JSD over their tokens; no cross-entropy in either loss."""
    (line,) = lines(folders / "greedy")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(path).eval() for path in (tiny_world.student, tiny_world.teacher)
    )
    config = of(tiny_world, folders / "greedy", {}, GREEDY)["config"]
    data = TokenDataset(tiny_world.train)
    values = torch.cat([jsd(student, teacher, data, int(example)) for example in first_examples(config)])
    assert line["train/jsd"] == pytest.approx(float(values.mean()), rel=1e-5)
    assert line["train/student_loss"] == pytest.approx(line["train/jsd"], rel=1e-6)
    assert line["train/student_ce"] > 0.0
    assert line["train/teacher_loss"] == pytest.approx(0.1 * line["train/forward_kl"], rel=1e-5)
    assert line["on_policy/seconds"] > 0.0


def first_examples(config: dict[str, Any]) -> Any:
    shape = BatchShape(sequence_length=96, bucket=8, global_batch=8, micro_batch=2)
    return TrainBatches(TokenDataset(config["data"]["train"]), shape, seed=config["train"]["seed"]).examples(0)


@torch.no_grad()
def jsd(student: PreTrainedModel, teacher: PreTrainedModel, data: TokenDataset, example: int) -> torch.Tensor:
    """Of each token that the student writes after a prompt."""
    prompt = torch.from_numpy(data[example][: data.prompt_lengths[example]])[None]
    room = min(GREEDY["max_new_tokens"], 97 - prompt.shape[1])
    eos = load_tokenizer(data.tokenizer_path).eos_token_id
    student.generation_config.eos_token_id = eos
    whole = student.generate(prompt, max_new_tokens=room, do_sample=False, pad_token_id=eos)  # type: ignore[operator]
    at = slice(prompt.shape[1] - 1, whole.shape[1] - 1)
    q, p = (model(whole).logits[0, at, : data.vocab_size].double().softmax(-1) for model in (student, teacher))
    middle = 0.5 * (p + q)
    return 0.5 * ((p * (p / middle).log()).sum(-1) + (q * (q / middle).log()).sum(-1))
