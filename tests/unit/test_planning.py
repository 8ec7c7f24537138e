"""`megaokd plan`: its parts agree with the whole, the page shows what the commands print, mistakes get one sentence."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megaokd.cli import main
from megaokd.config import Config
from megaokd.config_file import load_config
from megaokd.cost.decode import Rates, Responses, generation_time
from megaokd.cost.flops import StepMethod, StepTokens, count_step
from megaokd.cost.hardware import GPUS, Assumptions, Cluster, find_gpu
from megaokd.cost.memory import in_flight, rank_memory
from megaokd.cost.stage_flops import stage_work
from megaokd.engine.buckets import DEEPSPEED_BUCKET
from megaokd.planning.plan import Models, make_plan, make_setting
from megaokd.planning.search import search

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
EXAMPLE = "docs/examples/plan_70b_to_8b.yaml"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def example(*overrides: str) -> Config:
    return load_config(EXAMPLE, overrides)


def cluster(nodes: int = 8, gpu: str = "h100") -> Cluster:
    return Cluster(find_gpu(gpu), nodes, 8, Assumptions())


def shown() -> list[tuple[str, str]]:
    """(command, what the page says that it prints)."""
    return re.findall(r"^```bash\n(megaokd plan [^`]+?)\n```\n\n```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(("command", "output"), shown(), ids=range(len(shown())))
def test_the_page_shows_what_the_command_prints(command: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(command.replace("\\\n", ""))[1:]) == 0
    assert capsys.readouterr().out == output


def test_the_page_has_both_clusters() -> None:
    commands = [command for command, _ in shown()]
    assert any("--nodes 8 " in f"{command} " for command in commands)
    assert any("--nodes 64 " in f"{command} " for command in commands)


def constants_row(name: str) -> str:
    """A GPU's row of the page's table."""
    gpu = GPUS[name]
    giga, tera = (gpu.memory, gpu.link, gpu.network), (gpu.bf16, gpu.fp32, gpu.bandwidth)
    memory, link, network = (value / 1e9 for value in giga)
    rates = [memory, *(value / 1e12 for value in tera), link, network]
    return f"| {' | '.join([f'`{name}`', gpu.name, *(f'{rate:g}' for rate in rates), gpu.sheet, gpu.system])} |"


@pytest.mark.parametrize("name", GPUS)
def test_the_page_has_the_constants_and_their_sources(name: str) -> None:
    assert f"\n{constants_row(name)}\n" in PAGE
    assert "https://" in GPUS[name].sheet
    assert "https://" in GPUS[name].system or GPUS[name].system.startswith(("assumed:", "the same:"))


METHODS = {
    "lora": [],
    "anchor": ["objective.teacher={ce: 1.0, anchor: 0.5}"],
    "head": ["teacher.online={kind: head, rank: 4}"],
    "bottleneck": ["teacher.online={kind: bottleneck, rank: 4, layers: 50}"],
    "frozen": ["teacher.online=null"],
    "cached": ["teacher.cache={path: cache}", "parallel.recompute=false"],
    "interleaved": ["parallel={tensor: 8, pipeline: 4, virtual_stages: 2, schedule: interleaved1f1b}"],
}


@pytest.mark.parametrize("method", METHODS)
def test_the_stages_do_the_work_of_the_step(method: str) -> None:
    """Summed over stages and micro-batches: the FLOPs that tests/unit/test_flops.py compares with torch's counter."""
    config = example(*METHODS[method])
    models = Models.read(config)
    setting = make_setting(config, models, 64, loss_share=0.75)
    rows = config.train.global_batch
    tokens = StepTokens(rows, setting.width, setting.loss_tokens * setting.micro_batches * setting.data_parallel)
    whole = count_step(models.student, models.teacher, tokens, StepMethod.of(config))
    found = sum(stage_work(setting, stage).total for stage in range(config.parallel.num_stages))
    assert found * setting.micro_batches * setting.data_parallel == whole.total


def test_the_reduction_buffer_is_no_larger_than_what_is_reduced() -> None:
    """As the engine has it: DeepSpeed's bucket of 2 GB only where there are so many parameters."""
    config = example(
        "parallel={}",
        "student.architecture={hidden_size: 64, num_layers: 2, num_heads: 4, max_positions: 4096}",
        "student.path=null",
    )
    models = Models.read(config)
    memory = rank_memory(make_setting(config, models, 64, loss_share=1.0), 0)
    trained = memory.weights // 4
    assert trained < DEEPSPEED_BUCKET
    assert memory.reduction == 4 * trained  # of 64 replicas each owns little


def test_one_gpu_computes_at_the_assumed_rate() -> None:
    config = example("parallel={}", "train.micro_batch=1")
    models = Models.read(config)
    setting = make_setting(config, models, 1, loss_share=1.0)
    one = replace(cluster(), nodes=1, gpus_per_node=1)
    time = make_plan(setting, one).time
    tokens = StepTokens(512, 4096, 512 * 4096)
    flops = count_step(models.student, models.teacher, tokens, StepMethod.of(config)).total
    assert time.compute == pytest.approx(flops / (GPUS["h100"].bf16 * 0.5))
    assert time.tensor == time.pipeline == time.bubble == time.data == 0.0


def test_links_within_a_node_and_between_nodes() -> None:
    gpu, on = GPUS["h100"], cluster()
    assert on.bandwidth(8) == gpu.link * 0.7
    assert on.bandwidth(16) == gpu.network * 0.7
    assert replace(on, gpus_per_node=6).bandwidth(4) == gpu.network * 0.7  # the second four lie in two nodes


@pytest.mark.parametrize(
    ("layout", "passes"),
    [
        ("{tensor: 8, pipeline: 4}", [4, 3, 2, 1]),
        # Worked by hand: a round of four for the second stage of each rank, two more for each rank behind, one more.
        ("{tensor: 8, pipeline: 4, virtual_stages: 2, schedule: interleaved1f1b}", [11, 9, 7, 5]),
    ],
)
def test_passes_in_flight(layout: str, passes: list[int]) -> None:
    config = example(f"parallel={layout}")
    setting = make_setting(config, Models.read(config), 64, 1.0)
    assert [in_flight(setting, rank) for rank in range(4)] == passes


def test_search_finds_the_configuration_itself_and_ranks() -> None:
    config = example("parallel.student_tensor=4", "train.micro_batch=2")
    models = Models.read(config)
    found = search(config, models, cluster(), 1.0)
    own = make_plan(make_setting(config, models, 64, 1.0), cluster())
    same = [plan for plan in found.plans if plan.config == config]
    assert [(plan.memory, plan.time) for plan in same] == [(own.memory, own.time)]
    times = [plan.time.total for plan in found.plans]
    assert times == sorted(times)
    assert all(plan.fits(cluster()) for plan in found.plans)
    assert len(found.plans) < found.tried


@pytest.mark.parametrize("recompute", ["true", "false"])
def test_memory_of_the_modules_is_what_goes_with_them(recompute: str) -> None:
    """Without modules the teacher keeps nothing for backward, and what is left is the student's."""
    layout = f"parallel={{tensor: 8, recompute: {recompute}}}"
    found, student = (
        rank_memory(make_setting(config, Models.read(config), 64, 1.0), 0)
        for config in (example(layout), example(layout, "teacher.online=null"))
    )
    assert student.modules == student.modules_optimizer == student.teacher_activations == 0
    assert 0 < found.modules == found.weights - student.weights == found.gradients - student.gradients
    assert found.optimizer - found.modules_optimizer == pytest.approx(student.optimizer, abs=24)  # of 8 replicas
    repeated = student.activations if recompute == "true" else 0  # of the student, whose layer is not the larger one
    assert student.activations - repeated <= found.activations - found.teacher_activations <= student.activations
    assert found.teacher_activations > 0


GIVEN = {
    "parallel.tensor=2": {"tensor": {2}, "pipeline": {1, 2, 4, 8, 16}},
    "parallel={tensor: 8, recompute: true} train.micro_batch=2": {
        "tensor": {8},
        "recompute": {True},
        "micro_batch": {2},
        "student_tensor": {4, 8},
    },
    "parallel.student_tensor=2": {"tensor": {2, 4, 8}, "student_tensor": {2}},
    "parallel.student_tensor=auto train.zero_stage=2": {
        "student_tensor": {1, 2, 4, 8},
        "zero_stage": {2},
        "pipeline": {1},
    },
}


@pytest.mark.parametrize("given", GIVEN)
def test_search_leaves_what_the_command_line_gives(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The rest of the layout is varied, whatever the file says of it; nothing of it means all that is tried."""
    overrides = re.split(r" (?=train)", given)
    assert main(["plan", EXAMPLE, "--gpu", "b200", "--nodes", "4", "--search", "--top=9999", "--json", *overrides]) == 0
    plans = json.loads(capsys.readouterr().out)["plans"]
    for key, values in GIVEN[given].items():
        assert {plan["layout"][key] for plan in plans} == values, key


def test_json_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", EXAMPLE, "--gpu", "h200", "--nodes", "2", "--json", "train.global_batch=64"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    memory, time = data["memory_bytes"], data["time_s"]
    held = sum(memory[name] for name in ("teacher", "weights", "gradients", "optimizer", "buffers"))
    assert memory["peak"] == held + max(memory["activations"] + memory["loss"], memory["reduction"], memory["writing"])
    assert memory["activations_with_recompute"] < memory["activations_without_recompute"]
    parts = ("compute", "tensor", "pipeline", "bubble", "data", "update", "writing")
    assert time["total"] == pytest.approx(sum(time[name] for name in parts))


def test_the_students_own_text_takes_time_and_memory() -> None:
    """Half of the steps write; keys and values are two for each layer, row, column, KV head of a rank and channel."""
    plain = example("parallel={tensor: 8}", "data.packing=false")
    config = example("parallel={tensor: 8}", "data.packing=false", "train.on_policy={max_new_tokens: 256}")
    models = Models.read(config)
    without, found = (make_plan(make_setting(one, models, 64, 1.0), cluster()) for one in (plain, config))
    responses = Responses(rows=64, prompt=4097 - 256, response=256, tensor=8, precision="bf16")
    rates = Rates.of_gpu(GPUS["h100"], Assumptions(), "bf16")
    assert found.time.writing == generation_time(models.student, responses, rates).total / 2
    assert found.time.total == pytest.approx(without.time.total + found.time.writing)
    assert found.memory.writing == 2 * 32 * 64 * 4097 * 1 * 128 * 2
    assert without.time.writing == without.memory.writing == 0


MISTAKES = {
    ("--gpu", "h100", "--nodes", "8", "train.on_policy={}"): "train.on_policy does not run with parallel.pipeline > 1",
    ("--gpu", "h1000"): "--gpu h1000: not in the table.*known are h100, h200",
    ("--gpu", "h100", "--nodes", "0"): "--nodes must be at least 1, not 0",
    ("--gpu", "h100", "--efficiency", "50"): "--efficiency must be above 0 and at most 1, not 50",
    (
        "--gpu",
        "h100",
        "--nodes",
        "3",
    ): r"train.global_batch = 512 is not a multiple of .* 1 x 1|does not divide the number of processes, 24",
    ("--gpu", "h100", "--nodes", "3", "--gpus-per-node", "100", "--search", "train.global_batch=1"): (
        "no layout of 3 nodes of 100 x H100.* can be built: train.global_batch=1 is .*a multiple of 300 suits"
    ),
    ("--gpu", "h100", "--nodes", "3", "--gpus-per-node", "7", "--search", "train.global_batch=8"): (
        'none of 16 layouts of 3 nodes of 7 x H100.* refused are 8 with "parallel.pipeline=21 with 1f1b .*", 8 with "'
    ),
    ("--gpu", "h100", "--nodes", "8", "--search", "train.on_policy={}"): (
        r"none of \d+ layouts .* built; refused are \d+ with .*, 148 with \"train.on_policy needs data.packing=false: "
        r"[^\"]*\", \d+ with other reasons$"
    ),
    ("--gpu", "h100", "--search", "parallel={tensor: 3, recompute: true}"): (
        r"--search tries no layout of 1 nodes of 8 x H100 .*tensor=3 \(tried are 1, 2, 4, 8\) and .*recompute=true "
    ),
    ("--gpu", "a100-40", "--search"): r"no layout of 1 nodes of 8 x A100 SXM, 40 GB fits: [^;]*; \d+ nodes would do$",
    ("--gpu", "a100-40", "--search", "train.on_policy={}", "data.packing=false"): (
        r"fits: .*refused are \d+ with \"train.on_policy does not run with .*\"; \d+ nodes would do$"
    ),
    (
        "--gpu",
        "h100",
        "--nodes",
        "8",
        "parallel.student_tensor=2",
    ): "student_tensor=2 with parallel.tensor=8 makes 4 groups .* must be a multiple of 4",
    ("--gpu", "h100", "--nodes", "8", "teacher.path=./nowhere"): "nowhere/config.json: cannot be read",
    ("--gpu", "h100", "--nodes", "8", "train.zero_stage=2"): "train.zero_stage=2 needs parallel.pipeline=1",
}


@pytest.mark.parametrize("arguments", MISTAKES, ids=" ".join)
def test_a_mistake_is_one_sentence(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", EXAMPLE, *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(MISTAKES[arguments], line), line
