"""A point's processes: a group of their own, each a worker that steps when it is asked to."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch.distributed as dist

from megaokd.benchmark.growth.idle import ObservedRunner
from megaokd.benchmark.growth.kept import kept_bytes
from megaokd.benchmark.growth.points import Point
from megaokd.benchmark.step.ours import values_of
from megaokd.benchmark.step.worker import Contender, Measured, Worker
from megaokd.benchmark.step.world import World
from megaokd.errors import RunError
from megaokd.mesh import build_mesh, free_port, start_distributed
from megaokd.pipeline.schedule import PipelineRunner
from megaokd.run import build_run

SHARED = ("student_loss", "teacher_loss", "forward_kl", "norm of student", "norm of online")
"""Of a step, equal for every layout of the same models."""


@dataclass(frozen=True)
class Place:
    """A process in its group."""

    rank: int
    processes: int
    port: int


class RankStep:
    """This process's part of a step."""

    def __init__(self, point: Point, world: World, place: Place) -> None:
        os.environ.update(
            RANK=str(place.rank),
            LOCAL_RANK=str(place.rank),
            WORLD_SIZE=str(place.processes),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(place.port),
        )
        config = point.config(world)
        device = start_distributed(config.train.timeout_s)
        self._run = build_run(config, build_mesh(config.parallel, device, config.train.timeout_s))
        kept = kept_bytes(self._run, self._run.train_batches.batch(0))
        self._about = {f"kept by {name}": float(size) for name, size in kept.items()}
        self._step, runner = self._run.step, self._run.step.runner
        self._watch = ObservedRunner(runner) if isinstance(runner, PipelineRunner) else None
        if self._watch is not None:
            self._step = replace(self._step, runner=self._watch)

    def __call__(self, step: int) -> dict[str, float]:
        """Metrics and gradient norms; bytes kept for backward; with a pipeline, seconds of work and in all."""
        batch = self._run.train_batches.batch(step)
        dist.barrier()  # the ranks begin together: whoever was woken first would seem to wait
        report = self._step(step, batch)
        values = values_of(report) | self._about
        return values | ({} if self._watch is None else {"busy": self._watch.busy, "span": self._watch.span})


class RankGroup:
    """All processes of a point; they step together."""

    def __init__(self, point: Point, world: World, processes: ExitStack) -> None:
        self.point = point
        port = free_port()
        contenders = [
            Contender(
                f"{point.name}, rank {rank}",
                "megaokd.benchmark.growth.ranks:RankStep",
                {"point": point, "world": world, "place": Place(rank, point.processes, port)},
                ("deepspeed",),
            )
            for rank in range(point.processes)
        ]
        self._workers = [processes.enter_context(Worker(contender)) for contender in contenders]

    def ready(self) -> None:
        """Wait until all are built.

        Raises:
            RunError: one could not be.
        """
        for worker in self._workers:
            reason = worker.ready()
            if reason:
                raise RunError(f"benchmark: {worker.contender.name}: {reason}")

    def step(self, number: int) -> None:
        """One step of all ranks."""
        for worker in self._workers:
            worker.begin(number)
        for worker in self._workers:
            worker.finish()

    def measure_memory(self, number: int) -> None:
        """Peaks since the first step, and of one more."""
        for worker in self._workers:
            worker.begin_memory(number)
        for worker in self._workers:
            worker.finish_memory()

    @property
    def ranks(self) -> Sequence[Contender]:
        """What each has told, by rank."""
        return [worker.contender for worker in self._workers]

    def steps(self) -> list[list[Measured]]:
        """What was measured, step by step, each rank's; the first step is not timed."""
        return [list(step) for step in zip(*(rank.steps for rank in self.ranks), strict=True)]
