"""Where the time of a step goes, observed on the loop's own parts: hooks on models, stand-ins around the others.

Phases follow one another and never overlap, so they add up to the step. The teacher's backward comes before the
student's: autograd goes through the graph from its end, and the stage runs the student first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from megaokd.benchmark.measure import CLOCKS, Clock, synchronize
from megaokd.data.batch import Batch
from megaokd.engine.step import TrainingStep
from megaokd.pipeline.schedule import MicroBatchLoop
from megaokd.run import Run

PHASES = (
    "data", "student forward", "teacher forward", "heads and loss", "teacher backward", "student backward",
    "communication", "optimizer", "rest",
)  # fmt: skip


class PhaseClock:
    """Seconds of each phase since `start`; on a GPU each change of phase waits for the device."""

    def __init__(self, device: torch.device, clock: Clock = "wall") -> None:
        self._now = CLOCKS[clock]
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._device = device
        self._phase = "rest"
        self._since = 0.0

    def start(self) -> None:
        """Everything to zero."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._phase, self._since = "rest", self._now()

    def switch(self, phase: str) -> None:
        """What comes now belongs to this phase."""
        synchronize(self._device)
        now = self._now()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now


def observe(run: Run, clock: PhaseClock) -> TrainingStep:
    """The run's step, telling the clock what it does; for one stage on one process."""
    stage = run.models.stages[0]
    runner = run.step.runner
    assert isinstance(runner, MicroBatchLoop)
    _observe_model(stage.student, "student", clock)
    if stage.teacher is not None:
        _observe_model(stage.teacher, "teacher", clock)
    runner.loss = _observed_loss(runner.loss, clock)
    trunk: Any = None if run.step.trunk is None else _ObservedTrunk(run.step.trunk, clock)
    engine: Any = _ObservedEngine(run.step.engine, clock)
    return replace(run.step, engine=engine, trunk=trunk)


def _observe_model(model: nn.Module, name: str, clock: PhaseClock) -> None:
    def before(*_: Any) -> None:
        clock.switch(f"{name} forward")

    def after(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
        clock.switch("rest")
        if output.requires_grad:
            output.register_hook(lambda _: clock.switch(f"{name} backward"))

    model.register_forward_pre_hook(before)
    model.register_forward_hook(after)


def _observed_loss(loss: Callable[..., torch.Tensor], clock: PhaseClock) -> Callable[..., torch.Tensor]:
    """The loss's own backward, which comes first, counts as loss."""

    def call(*arguments: Any, **options: Any) -> torch.Tensor:
        clock.switch("heads and loss")
        return loss(*arguments, **options)

    return call


class _ObservedTrunk:
    def __init__(self, trunk: Callable[[Batch], torch.Tensor | None], clock: PhaseClock) -> None:
        self._trunk, self._clock = trunk, clock

    def __call__(self, batch: Batch) -> torch.Tensor | None:
        self._clock.switch("data")
        result = self._trunk(batch)
        self._clock.switch("rest")
        return result


class _ObservedEngine:
    """Sums of gradients and of the report are communication; norms, clipping and update the optimizer's."""

    def __init__(self, engine: Any, clock: PhaseClock) -> None:
        self._engine, self._clock = engine, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    @contextmanager
    def accumulate(self) -> Iterator[None]:
        with self._engine.accumulate():
            yield
            self._clock.switch("communication")

    def square_norms(self) -> Any:
        self._clock.switch("optimizer")
        norms = self._engine.square_norms()
        self._clock.switch("communication")
        return norms

    def clip(self, norms: Any) -> None:
        self._clock.switch("optimizer")
        self._engine.clip(norms)

    def step(self, learning_rates: Any) -> None:
        self._engine.step(learning_rates)
        self._clock.switch("rest")
