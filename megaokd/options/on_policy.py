"""`train.on_policy`: batches whose responses the student has written itself."""

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(extra="forbid"), kw_only=True)
class Adaptive:
    """DistiLLM's schedule and its buffer of earlier responses (arXiv 2402.03898)."""

    increase: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Added to the probability when the validation loss has grown."""
    tolerance: Annotated[float, Field(ge=0.0)] = 0.1
    """How far `validation/student_ce` must lie above the value that it had at the last increase, or before the first
    step."""
    capacity: Annotated[int, Field(gt=0)] = 1000
    """Rows that the buffer holds, of all processes together; at least `train.global_batch`."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"), kw_only=True)
class OnPolicy:
    """Student-generated output (GKD, arXiv 2306.13649)."""

    probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Of a step's batch: the student continues its prompts and learns on what it has written; otherwise the data's
    responses stay."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 128
    """Most tokens of a response, its end-of-text token included; `data.sequence_length` bounds prompt and response
    together."""
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """Of the student's sampling; 0: greedy."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Only the so many likeliest tokens are drawn; 0: all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Only the fewest likeliest tokens that have this share of the probability together; 1: all."""
    ce: bool = False
    """Whether cross-entropy counts on the student's own text as well, as `objective` says; `false`: there it is
    measured only, as nobody has said that this text is right."""
    adaptive: Adaptive | None = None
    """The probability grows with the validation loss, and responses are used again; `null`: it stays, and each
    response is written for its step."""
