"""`logging.warnings`: from when on a person is told that a run needs a look."""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

PositiveFloat = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Factor = Annotated[float, Field(gt=1.0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"), kw_only=True)
class Warnings:
    """What is worth a warning (docs/monitoring.md)."""

    teacher_drift: PositiveFloat | None = 1.0
    """KL(adapted teacher || original teacher) above this, nats a token, on the validation data; `null`: no
    such warning."""
    agreement_fall: Share | None = 0.05
    """Top-1 agreement on the validation data this far below its highest value so far; `null`: none."""
    gradient_spike: Factor | None = 10.0
    """A group's gradient norm, before clipping, above this many times the median of its last 100; `null`: none."""
    data_wait: Share | None = 0.2
    """Share of the last 50 steps' time that was spent waiting for data; `null`: none."""
    repeat_after: Annotated[int, Field(gt=0)] = 500
    """Steps before the same warning is given again."""
