"""A student split less than its teacher: what is refused, and who holds what."""

from typing import Any

import pytest

from megaokd.config import Config
from megaokd.config_file import parse_config
from megaokd.errors import UserError
from megaokd.models.architecture import DecoderArchitecture
from megaokd.parallel.linear import HeadShard
from megaokd.parallel.region import TensorParallel
from megaokd.pipeline.blueprint import check_models


def config(micro_batch: int, **parallel: Any) -> Config:
    train = {"steps": 1, "global_batch": 8, "micro_batch": micro_batch}
    return parse_config({"data": {"train": "x"}, "train": train, "checkpoint": {"folder": "y"}, "parallel": parallel})


def student(heads: int) -> DecoderArchitecture:
    options = config(1).student.architecture
    arch = DecoderArchitecture.from_config(options, vocab_size=300)
    return DecoderArchitecture(**{**vars(arch), "num_heads": heads, "num_kv_heads": heads})


@pytest.mark.parametrize(
    ("micro_batch", "parallel", "heads", "expected"),
    [
        (2, {"tensor": 4, "student_tensor": 1}, 4, r"train.micro_batch=2 must be a multiple of 4.*one of \[2, 4\]"),
        (4, {"tensor": 4, "student_tensor": 2}, 3, r"parallel.student_tensor=2 does not fit the student: 3 attention"),
        (4, {"tensor": 4, "student_tensor": 4}, 3, r"parallel.tensor=4 does not fit the student: 3 attention"),
    ],
)
def test_refused_with_a_choice(micro_batch: int, parallel: dict[str, Any], heads: int, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        check_models(config(micro_batch, **parallel), student(heads), None, 300)


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match=r"student_tensor=3 does not divide tensor=4: one of \[1, 2, 4\]"):
        config(4, tensor=4, student_tensor=3)


def test_a_student_that_could_not_be_split_fits_undivided() -> None:
    check_models(config(4, tensor=4, student_tensor=1), student(3), None, 300)


def test_neighbours_hold_the_same_slice() -> None:
    """Two KV heads, student_tensor=4 in tensor=8: heads have two copies in a group and there are two groups."""
    ranks = [
        HeadShard(2, 8, TensorParallel(rank=rank // 2, size=4)).layout().repeated(2, rank % 2) for rank in range(8)
    ]
    assert [layout.start for layout in ranks] == [0, 0, 0, 0, 8, 8, 8, 8]
    assert [layout.first_copy for layout in ranks] == [rank % 4 == 0 for rank in range(8)]
    assert all((layout.copies, layout.row_groups, layout.partial) == (4, 2, True) for layout in ranks)
