"""What is refused before models are built."""

from dataclasses import replace

import pytest

from megaokd.config import Architecture, Checkpoint, Config, Data, Train
from megaokd.errors import UserError
from megaokd.models.architecture import DecoderArchitecture
from megaokd.models.rotary import LongRopeScaling, Rotary
from megaokd.pipeline.blueprint import check_models


def config(sequence_length: int, *, packing: bool) -> Config:
    data = Data(train="data", sequence_length=sequence_length, packing=packing)
    return Config(data=data, train=Train(steps=1), checkpoint=Checkpoint(folder="run"))


def test_packed_rows_that_are_long_for_longrope() -> None:
    scaling = LongRopeScaling(short_factor=(1.0,) * 4, long_factor=(2.0,) * 4, original_positions=64, amplitude=1.0)
    plain = DecoderArchitecture.from_config(Architecture(hidden_size=32, max_positions=256), vocab_size=50)
    student = replace(plain, rotary=Rotary(dim=8, scaling=scaling))
    with pytest.raises(UserError, match=r"rows of 128 positions.*student: its LongRoPE changes beyond 64"):
        check_models(config(128, packing=True), student, None, 50)
    check_models(config(64, packing=True), student, None, 50)
    check_models(config(128, packing=False), student, None, 50)
    check_models(config(128, packing=True), plain, None, 50)
