"""Schedules at the steps where mistakes show: the first, the end of warm-up, the middle, the last."""

import pytest

from megaokd.config import OptimizerGroup
from megaokd.engine.learning_rate import learning_rate


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("cosine", 0, 0.25),
        ("cosine", 3, 1.0),
        ("cosine", 4, 1.0),
        ("cosine", 12, 0.55),
        ("cosine", 20, 0.1),
        ("linear", 12, 0.55),
        ("linear", 20, 0.1),
        ("linear", 99, 0.1),
        ("constant", 19, 1.0),
    ],
)
def test_schedule(schedule: str, step: int, expected: float) -> None:
    options = OptimizerGroup(lr=1.0, schedule=schedule, warmup_steps=4, min_lr_ratio=0.1)  # type: ignore[arg-type]
    assert learning_rate(options, step, total_steps=20) == pytest.approx(expected)
