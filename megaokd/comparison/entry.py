"""What a method's entry in a recipe says beside its configuration: where its runs take something from other runs."""

import itertools
from collections.abc import Iterator
from dataclasses import fields
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from megaokd.config import NonNegative, Positive

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Search:
    """Short runs of one seed that choose settings by the validation data."""

    candidates: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    """Dotted key -> values; every combination is tried."""
    steps: Positive | None = None
    """Updates of a trial; default: train.steps."""
    seed: NonNegative | None = None
    """Default: the recipe's first."""
    metric: str = "validation/student_ce"
    """Its value at a trial's last step, in log.jsonl; the lowest wins, of an agreement the highest."""

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Dotted key -> value of each trial, in order."""
        for values in itertools.product(*self.candidates.values()):
            yield dict(zip(self.candidates, values, strict=True))

    def rank(self, value: float) -> float:
        """The lowest is the best."""
        return -value if "agreement" in self.metric else value


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class Responses:
    """What the recipe's teacher writes to prompts, once for all seeds, in the place of the training data (SeqKD)."""

    prompts: str
    """JSONL of objects with `prompt`: the training data before they were tokenized."""
    max_new_tokens: Positive = 128
    temperature: Annotated[float, Field(ge=0.0)] = 1.0
    """0: the likeliest token each time."""
    top_k: NonNegative = 0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    seed: NonNegative = 0
    batch: Positive = 16
    """Prompts at a time."""
    tensor: Positive = 1
    """Processes that the teacher is split over; what is left of the recipe's shares the prompts."""

    def arguments(self) -> list[str]:
        """For the command line of `megaokd generate`."""
        given = {field.name: str(getattr(self, field.name)) for field in fields(self)}
        return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]


@dataclass(frozen=True, config=_STRICT, kw_only=True)
class EntryOptions:
    """Keys of an entry that are the grid's and not the training run's."""

    like: str | None = None
    """Another entry, with what was searched and written there: what this entry says is merged over it."""
    set: dict[str, Any] | None = None
    """Dotted key -> value, over all of it: a term added to an objective, where a section of it would replace it."""
    seeds: Annotated[tuple[NonNegative, ...], Field(min_length=1)] | None = None
    """Some of the recipe's; default: all."""
    equal_time_of: str | None = None
    """As many updates of `like` as take the training time of this entry's run of the same seed."""
    adapted_teacher_of: str | None = None
    """The teacher, frozen, is what this entry's run of the same seed made of it."""
    responses: Responses | None = None
    """It trains on what the teacher of `base` writes."""
    search: Search | None = None

    @property
    def sources(self) -> list[str]:
        """Entries whose run of the same seed comes first."""
        timed = [self.like] if self.equal_time_of else []
        return [name for name in (*timed, self.equal_time_of, self.adapted_teacher_of) if name is not None]


OPTION_KEYS = {field.name for field in fields(EntryOptions)}


@dataclass(frozen=True)
class Entry:
    """A method of a recipe."""

    options: EntryOptions
    config: dict[str, Any]
    """Merged over the recipe's base."""
