"""Which steps train on the student's own text, and the text: a function of the weights, the seed and the step.

Without a schedule nothing here has a state, so a run that continues draws what it would have drawn; and a row's random
numbers belong to its place in the global batch, so every layout writes the same, up to the rounding of its logits.
"""

import time
from dataclasses import dataclass

import numpy as np

from megaokd.data.batch import Batch
from megaokd.data.batches import TrainBatches
from megaokd.generation.generate import generate
from megaokd.generation.options import GenerationOptions
from megaokd.mesh import ParallelMesh
from megaokd.models.decoder import Decoder
from megaokd.options.on_policy import OnPolicy
from megaokd.precision import Precision
from megaokd.sampling.adaptive import Origin, Schedule
from megaokd.sampling.rows import Row, batch_of

_CHOICE = 0x6F6E
"""Sets the random numbers of this choice apart from others of the same seed."""


@dataclass(frozen=True)
class Sampled:
    """A step's batch, and what there is to log about where it comes from."""

    batch: Batch
    scalars: dict[str, float]


@dataclass(frozen=True)
class OnPolicyBatches:
    """Puts the student's responses in the place of the data's, in some steps."""

    options: OnPolicy
    student: Decoder
    batches: TrainBatches
    mesh: ParallelMesh
    eos_id: int
    seed: int
    precision: Precision
    schedule: Schedule | None = None
    """With `on_policy.adaptive`: the probability as it stands, and the student's earlier responses."""

    def __call__(self, step: int, batch: Batch) -> Sampled:
        """The batch to train on in this step.

        Collective: the generator's, and over data parallelism an all-gather of 3 numbers; with a schedule another one,
        of the rows.
        """
        started = time.perf_counter()
        origin = self._origin(step)
        if origin != "data":
            rows = self.write(step, batch) if origin == "student" else self._earlier(step, batch)
            if origin == "student" and self.schedule is not None:
                self.schedule.replay.add(rows, self.mesh.data, self.mesh.device)
            batch = batch_of(rows, self.batches.shape, self.mesh.data, self.mesh.device)
        scalars = {"on_policy/generated": float(origin != "data"), "on_policy/seconds": 0.0}
        if origin != "data":
            scalars["on_policy/seconds"] = time.perf_counter() - started
        if self.schedule is not None:
            scalars["on_policy/replayed"] = float(origin == "replay")
            scalars["on_policy/probability"] = self.schedule.probability
        return Sampled(batch, scalars)

    def _origin(self, step: int) -> Origin:
        drawn = draw(self.seed, step)
        if self.schedule is not None:
            return self.schedule.origin(drawn, step)
        return "student" if drawn < self.options.probability else "data"

    def _earlier(self, step: int, batch: Batch) -> list[Row]:
        assert self.schedule is not None
        shape, count = self.batches.shape, len(batch.examples)
        own = slice(shape.dp_rank * count, (shape.dp_rank + 1) * count)
        return self.schedule.replay.draw(self.seed, step, shape.global_batch, own, self.batches.dataset)

    def write(self, step: int, batch: Batch) -> list[Row]:
        """The student's responses to the prompts of this rank's rows."""
        shape, dataset = self.batches.shape, self.batches.dataset
        examples = [int(together[0]) for together in batch.examples]
        prompts = [dataset[example][: dataset.prompt_lengths[example]] for example in examples]
        first = step * shape.global_batch + shape.dp_rank * len(examples)
        options = GenerationOptions(
            max_new_tokens=self.options.max_new_tokens,
            temperature=self.options.temperature,
            top_k=self.options.top_k,
            top_p=self.options.top_p,
            seed=self.seed,
        )
        responses = generate(
            self.student,
            [prompt.tolist() for prompt in prompts],
            options,
            eos_id=self.eos_id,
            streams=range(first, first + len(examples)),
            max_length=shape.sequence_length + 1,  # the last token is only ever a label
            precision=self.precision,
        )
        return [Row(*parts) for parts in zip(examples, prompts, responses, strict=True)]


def draw(seed: int, step: int) -> float:
    """A number of this step, uniform in [0, 1), the same on every rank."""
    return float(np.random.default_rng((_CHOICE, seed, step)).random())
