"""The choice of `parallel.student_tensor=auto`, and the machine that it is made for."""

from dataclasses import replace
from typing import Any

import pytest

from megaokd.config import Config
from megaokd.config_file import parse_config
from megaokd.cost.communication import step_traffic
from megaokd.cost.hardware import GPUS, Assumptions, Cluster
from megaokd.cost.machine import CORE, gpu_like
from megaokd.cost.setting import Setting
from megaokd.cost.student_choice import LEAST_GAIN, Choice, choose_student_tensor, with_student_tensor
from megaokd.cost.time import step_time
from megaokd.errors import UserError
from megaokd.kernels.linear import GPU_BUDGET
from megaokd.models.architecture import DecoderArchitecture
from megaokd.pipeline.blueprint import check_models

HERE = Cluster(GPUS["h200"], 1, 4, Assumptions())


def config(micro_batch: int = 4, **parallel: Any) -> Config:
    train = {"steps": 1, "global_batch": 8, "micro_batch": micro_batch}
    layout = {"tensor": 4, **parallel}
    return parse_config({"data": {"train": "x"}, "train": train, "checkpoint": {"folder": "y"}, "parallel": layout})


def student(heads: int = 4) -> DecoderArchitecture:
    arch = DecoderArchitecture.from_config(config().student.architecture, vocab_size=300)
    return DecoderArchitecture(**{**vars(arch), "num_heads": heads, "num_kv_heads": heads})


def setting(heads: int = 4, **options: Any) -> Setting:
    return Setting(config(**options), student(heads), None, 300, 4, 512, 1024, GPU_BUDGET)


def choice(case: Setting, **gpu: float) -> Choice:
    found = choose_student_tensor(case, replace(HERE, gpu=replace(HERE.gpu, **gpu)))
    assert found is not None
    return found


def test_fewer_ranks_where_calls_cost_and_all_where_they_cost_nothing() -> None:
    assert choice(setting(), link=1e9).ranks == 1
    free = replace(HERE, gpu=replace(HERE.gpu, link=1e30), assumptions=Assumptions(latency_s=0.0))
    found = choose_student_tensor(setting(), free)
    assert found is not None
    assert found.ranks == 4


def test_what_is_told_is_what_a_step_sends_and_takes() -> None:
    for one in choice(setting()).candidates:
        case = with_student_tensor(setting(), one.ranks)
        sent = step_traffic(case, 0)
        assert one.calls == sum(volume.calls for _, _, volume in sent)
        assert one.bytes == sum(volume.bytes for _, _, volume in sent)
        assert one.seconds == step_time(case, HERE).total


def test_a_small_gain_changes_nothing() -> None:
    slow = choice(setting(), fp32=GPUS["h200"].fp32 / 1e4)
    least = min(one.seconds for one in slow.candidates)
    assert 1.0 < slow.candidates[-1].seconds / least < LEAST_GAIN
    assert slow.ranks == 4


def test_memory_decides_too() -> None:
    """Nothing is taken that does not fit, unless it needs no more than the teacher's number does."""

    def found(case: Setting, memory: float) -> Choice:
        slow = replace(HERE, gpu=replace(HERE.gpu, memory=memory), assumptions=Assumptions(latency_s=1.0))
        made = choose_student_tensor(case, slow)  # calls alone decide
        assert made is not None
        return made

    short = replace(setting(), width=16, loss_tokens=16)
    undivided, *_, widest = found(short, 1e12).candidates
    assert undivided.peak > widest.peak
    between = (undivided.peak + widest.peak) / 2 / HERE.assumptions.usable_memory
    assert [found(short, memory).ranks for memory in (1e12, between)] == [1, 4]
    tight = replace(setting(), width=4096)
    undivided, *_, widest = found(tight, 1.0).candidates
    assert undivided.peak < widest.peak
    assert found(tight, 1.0).ranks == 1


def test_what_suits_the_student_and_the_rows() -> None:
    assert [one.ranks for one in choice(setting(micro_batch=2)).candidates] == [2, 4]
    assert [one.ranks for one in choice(setting(heads=3)).candidates] == [1]
    assert choose_student_tensor(setting(heads=3, micro_batch=2), HERE) is None
    check_models(config(), student(3), None, 300)
    with pytest.raises(UserError, match=r"parallel.tensor=4 does not fit the student: 3 attention heads"):
        check_models(config(micro_batch=2), student(3), None, 300)


def test_the_sentence_has_all_numbers() -> None:
    found = choice(setting(), link=1e9)
    assert found.sentence().startswith("parallel.student_tensor=auto is 1, by what a step is predicted to take")
    assert all(
        f"{one.ranks}: {one.seconds * 1e3:.3g} ms, {one.calls} calls" in found.sentence() for one in found.candidates
    )
    assert [line.endswith("taken") for line in found.lines()[3:]] == [True, False, False]


def test_the_entry_of_a_device() -> None:
    assert gpu_like("NVIDIA H100 80GB HBM3", 85_000_000_000) is GPUS["h100"]
    assert gpu_like("NVIDIA A100-SXM4-40GB", 42_000_000_000) is GPUS["a100-40"]
    assert gpu_like("NVIDIA A100-SXM4-80GB", 85_000_000_000) is GPUS["a100-80"]
    assert gpu_like("Tesla T4", 16_000_000_000) is GPUS["h100"]
    assert CORE not in GPUS.values()
