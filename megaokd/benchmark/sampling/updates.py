"""The three updates of a cell, built and run as training builds and runs them, and whether they do what they say."""

from dataclasses import dataclass, replace

import torch

from megaokd.benchmark.measure import CLOCKS, Clock, synchronize
from megaokd.benchmark.step.ours import Variant, values_of
from megaokd.benchmark.step.world import World
from megaokd.config import Config, Objective
from megaokd.data.batch import Batch
from megaokd.mesh import ParallelMesh
from megaokd.options.on_policy import OnPolicy
from megaokd.run import build_run
from megaokd.sampling.on_policy import OnPolicyBatches

ON_POLICY, OKD, CACHED = "on-policy", "OKD", "OKD, cached"
NO_EOS = -1
"""No token ends a response, so that each has the length of its cell."""
NEAR = 1e-4
"""How far below the largest logit that of a greedy token may lie: two ways to the same sums round differently."""


@dataclass(frozen=True)
class Cell:
    """What an update trains on: prompts that are all as long, and responses that are all as long."""

    rows: int
    response: int

    def of(self, world: World) -> World:
        """The same folders, whose examples are cut to this length."""
        sequence = world.pair.prompt + self.response - 1  # the last token is only ever a label
        pair = replace(world.pair, sequence=sequence, global_batch=self.rows, micro_batch=self.rows)
        return replace(world, pair=pair)


@dataclass(frozen=True)
class Timed:
    """One update; seconds by the clock that was asked for."""

    seconds: float
    writing: float
    """Seconds of them in which the student wrote."""
    values: dict[str, float]


def variants(world: World) -> dict[str, Variant]:
    """What is trained: modules in the teacher's last quarter, or a frozen teacher where the student writes."""
    quarter = max(1, world.pair.teacher.num_layers // 4)
    return {
        ON_POLICY: Variant(ON_POLICY),
        OKD: Variant(OKD, online_layers=quarter),
        CACHED: Variant(CACHED, online_layers=quarter, cached=True),
    }


def configure(name: str, world: World, steps: int) -> Config:
    """The run of an update in the world of a cell."""
    config = variants(world)[name].config(world)
    config = replace(config, train=replace(config.train, steps=steps))
    if name != ON_POLICY:
        return config
    writing = OnPolicy(probability=1.0, max_new_tokens=world.pair.sequence + 1 - world.pair.prompt)
    return replace(config, objective=Objective(student={"jsd": 1.0}), train=replace(config.train, on_policy=writing))


class Update:
    """A run that makes one update when asked to."""

    def __init__(self, config: Config, mesh: ParallelMesh, clock: Clock) -> None:
        self.run = build_run(config, mesh)
        self._clock = CLOCKS[clock]
        self._device = mesh.device
        writer = self.run.on_policy
        self.writer = None if writer is None else replace(writer, eos_id=NO_EOS)

    def __call__(self, step: int) -> Timed:
        """Data, text where the student writes it, forward and backward, update."""
        start = self._now()
        batch = self.run.train_batches.batch(step)
        read = self._now()
        if self.writer is not None:
            batch = self.writer(step, batch).batch
        written = self._now() if self.writer is not None else read
        report = self.run.step(step, batch)
        seconds = self._now() - start
        return Timed(seconds, written - read, values_of(report) | {"loss tokens": float(batch.loss_tokens)})

    def _now(self) -> float:
        synchronize(self._device)
        return self._clock()


def disagreement(writer: OnPolicyBatches, batch: Batch) -> str:
    """Why the text is not the student's, or nothing: its greedy responses are what a full forward finds likeliest."""
    greedy = replace(writer, options=replace(writer.options, temperature=0.0))
    written = greedy(0, batch).batch
    if not written.generated:
        return "the batch is the data's"
    tokens, labels = written.tokens.flatten(0, 1), written.labels.flatten(0, 1)
    counts = (labels >= 0).sum(1)
    if not bool((counts == writer.options.max_new_tokens).all()):
        return f"responses have {counts.tolist()} tokens instead of {writer.options.max_new_tokens}"
    device, head = writer.mesh.device, writer.student.head
    assert head is not None
    with torch.no_grad():
        hidden = writer.student(tokens.to(device))[(labels >= 0).to(device)]
        logits = head(hidden).float()
    chosen = logits.gather(1, labels[labels >= 0].to(device).unsqueeze(1)).squeeze(1)
    wrong = int((chosen < logits.amax(1) - NEAR).sum())
    return f"{wrong} of {len(chosen)} greedy tokens are not the likeliest of a full forward" if wrong else ""
