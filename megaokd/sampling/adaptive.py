"""DistiLLM's adaptive off-policy use of the student's output (arXiv 2402.03898), as in its authors' code.

The probability of a step on the student's text begins at `on_policy.probability` and grows by `increase` each time that
the validation loss exceeds its last reference by `tolerance`, which then becomes the reference. The first one is the
loss before the first step. Of these steps a share that falls linearly to zero over the run writes anew, and so do all
until the buffer is full; the others draw from the buffer.
"""

from typing import Literal

from megaokd.options.on_policy import Adaptive
from megaokd.sampling.replay import Replay

Origin = Literal["data", "student", "replay"]


class Schedule:
    """Where the batches come from, as it stands. Equal on every rank: it follows numbers that all ranks have."""

    def __init__(self, options: Adaptive, probability: float, total_steps: int, max_new_tokens: int) -> None:
        self.options = options
        self.total_steps = total_steps
        self.probability = probability
        self.reference: float | None = None
        self.replay = Replay(options.capacity, max_new_tokens)

    def origin(self, drawn: float, step: int) -> Origin:
        """For a number that is uniform in [0, 1)."""
        if drawn >= self.probability:
            return "data"
        anew = drawn < self.probability * (1.0 - step / self.total_steps)
        return "student" if anew or not self.replay.full else "replay"

    def after_validation(self, loss: float) -> None:
        """loss: the student's cross-entropy on the validation data."""
        if self.reference is None:
            self.reference = loss
        elif loss >= self.reference + self.options.tolerance:
            self.reference = loss
            self.probability = min(1.0, self.probability + self.options.increase)

    @property
    def state(self) -> dict[str, float]:
        """What a checkpoint keeps beside the table of the buffer."""
        known = {} if self.reference is None else {"reference": self.reference}
        return {"probability": self.probability, "stored": self.replay.stored, **known}

    def restore(self, state: dict[str, float]) -> None:
        """Continue from there."""
        self.probability = state["probability"]
        self.reference = state.get("reference")
        self.replay.stored = int(state["stored"])
