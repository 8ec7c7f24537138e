"""Numbers of a model and of a layout that do not fit together are refused with the choices that would."""

import json
from pathlib import Path
from typing import Any

import pytest

from megaokd import config
from megaokd.config import Parallel
from megaokd.errors import UserError
from megaokd.mesh import data_parallel_size
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.huggingface_config import huggingface_config, read_architecture
from megaokd.pipeline.schedule import check_micro_batches
from megaokd.pipeline.split import balance_layers, split_model


def architecture(**changes: Any) -> DecoderArchitecture:
    options = {"hidden_size": 48, "num_heads": 6, "num_kv_heads": 2, "num_layers": 5, **changes}
    return DecoderArchitecture.from_config(config.Architecture(**options), vocab_size=300)


def test_world_size() -> None:
    assert data_parallel_size(Parallel(tensor=2, pipeline=2), 8) == 2
    with pytest.raises(UserError, match=r"= 6 does not divide the number of processes, 4: .*node=6 .*\[1, 2, 4\]"):
        data_parallel_size(Parallel(tensor=3, pipeline=2), 4)


def test_tensor_parallel_size() -> None:
    architecture().check_layout("student", tensor=2, stages=1)
    with pytest.raises(UserError, match=r"parallel.tensor=4 .* student: 6 attention heads.*possible values: \[1, 2"):
        architecture().check_layout("student", tensor=4, stages=1)


def test_number_of_stages() -> None:
    with pytest.raises(UserError, match=r"6 stages, but the student has only 5 layers"):
        architecture().check_layout("student", tensor=1, stages=6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_heads": 5}, "not a multiple of num_heads=5"), ({"num_kv_heads": 4}, r"choose one of \[1, 2, 3, 6\]")],
)
def test_heads(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        architecture(**changes)


@pytest.mark.parametrize(
    ("parallel", "micro_batches", "message"),
    [
        (Parallel(pipeline=4), 3, "at least 4 micro-batches a step"),
        (Parallel(pipeline=2, virtual_stages=2, schedule="interleaved1f1b"), 3, "a multiple of 2 micro-batches"),
        (Parallel(pipeline=2, virtual_stages=2), 4, "needs parallel.schedule=interleaved1f1b"),
        (Parallel(schedule="interleaved1f1b"), 4, "needs parallel.pipeline of at least 2"),
    ],
)
def test_micro_batches(parallel: Parallel, micro_batches: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_micro_batches(parallel, micro_batches)


@pytest.mark.parametrize(
    ("layers", "stages", "head", "expected"),
    [(8, 2, 0.0, [4, 4]), (8, 2, 2.0, [5, 3]), (8, 4, 10.0, [2, 2, 3, 1]), (5, 1, 3.0, [5]), (4, 4, 9.0, [1] * 4)],
)
def test_the_last_stage_pays_for_head_and_loss(layers: int, stages: int, head: float, expected: list[int]) -> None:
    assert balance_layers(layers, stages, 1.0, head) == expected


def test_slices_cover_the_model_once() -> None:
    slices = split_model(architecture(), 3)
    assert [index for part in slices for index in part.layers] == list(range(5))
    assert [part.first for part in slices] == [True, False, False]
    assert [part.last for part in slices] == [False, False, True]


def test_huggingface_config_round_trip(tmp_path: Path) -> None:
    original = architecture(tied_head=False, attention_bias=True, rope_theta=5e5)
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(original, bos_token_id=1, eos_token_id=2)))
    assert read_architecture(tmp_path) == original


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type='mamba' is not supported; these are: llama, mistral"),
        ({"model_type": None}, "model_type=None is not supported"),
        ({"rope_parameters": {"rope_type": "proportional", "rope_theta": 1.0}}, "rope_type='proportional'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "transformers refuses it .*factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "beta_fast": 4.0}}, "'beta_fast' is not supported"),
        ({"quantization_config": {"bits": 4}}, "the field 'quantization_config'"),
        ({"hidden_act": "relu6"}, "the activation 'relu6'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"sliding_window": 128}, "the field 'sliding_window'"),
        ({"num_hidden_layers": None}, "num_hidden_layers missing"),
    ],
)
def test_unsupported_fields_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    values = huggingface_config(architecture(), bos_token_id=1, eos_token_id=2)
    (tmp_path / "config.json").write_text(json.dumps({**values, **change}))
    with pytest.raises(UserError, match=message):
        read_architecture(tmp_path)


def test_not_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a Hugging Face model folder"):
        read_architecture(tmp_path)
