"""A step to measure: two models, batches, layout; and what is predicted of it from these alone."""

from dataclasses import dataclass, field, replace
from functools import cached_property

from megaokd.benchmark.step.ours import Variant
from megaokd.benchmark.step.world import Pair, World
from megaokd.config import Config, Parallel
from megaokd.cost.flops import StepFlops, StepMethod, StepTokens, count_step
from megaokd.cost.memory import rank_memory
from megaokd.cost.part_cost import part_cost
from megaokd.cost.setting import Setting
from megaokd.cost.stage_flops import stage_work
from megaokd.kernels.linear import CPU_BUDGET, GPU_BUDGET
from megaokd.models.huggingface_config import read_architecture

TIMEOUT_S = 120
"""A rank whose neighbour ended waits no longer."""


@dataclass(frozen=True)
class Point:
    """One step of an axis."""

    name: str
    pair: Pair
    online_layers: int
    """The teacher's last layers that carry LoRA."""
    value: int = 0
    """Its place on the axis."""
    parallel: Parallel = field(default_factory=Parallel)

    @property
    def processes(self) -> int:
        """No data parallelism."""
        return self.parallel.tensor * self.parallel.pipeline

    @property
    def micro_batches(self) -> int:
        """Of a step."""
        return self.pair.global_batch // self.pair.micro_batch

    def config(self, world: World) -> Config:
        """The run's configuration."""
        # The student is split as the teacher is: what is measured must not depend on what a default chooses.
        parallel = replace(self.parallel, student_tensor=self.parallel.tensor)
        config = Variant(self.name, online_layers=self.online_layers).config(world)
        return replace(config, parallel=parallel, train=replace(config.train, timeout_s=TIMEOUT_S))


@dataclass(frozen=True)
class Prediction:
    """Of a point, from architectures and configuration."""

    point: Point
    setting: Setting

    @classmethod
    def of(cls, point: Point, world: World, *, on_gpu: bool) -> "Prediction":
        """Reads both models' configurations."""
        pair, config = point.pair, point.config(world)
        student, teacher = read_architecture(world.student), read_architecture(world.teacher)
        loss_tokens = pair.loss_tokens // point.micro_batches
        budget = GPU_BUDGET if on_gpu else CPU_BUDGET
        return cls(
            point, Setting(config, student, teacher, pair.vocab, point.processes, pair.sequence, loss_tokens, budget)
        )

    @cached_property
    def step(self) -> StepFlops:
        """Of the step, over all ranks."""
        pair, setting = self.point.pair, self.setting
        tokens = StepTokens(pair.global_batch, pair.sequence, pair.loss_tokens)
        return count_step(setting.student, setting.teacher, tokens, StepMethod.of(setting.config))

    @property
    def forward(self) -> int:
        """FLOPs of both models' layers, forward alone."""
        return self.step.student.forward + self.step.teacher.forward

    @property
    def repeated(self) -> int:
        """FLOPs of what recomputation makes once more."""
        return self.step.student.repeated + self.step.teacher.repeated

    @property
    def _passes(self) -> list[float]:
        """FLOPs of one micro-batch, a pipeline rank each, on one tensor-parallel rank."""
        stages = range(self.setting.config.parallel.num_stages)
        return [stage_work(self.setting, stage).total / self.setting.tp.size for stage in stages]

    @property
    def critical(self) -> float:
        """FLOPs, one after the other, that the step takes: the slowest stage's, M + P - 1 times."""
        return max(self._passes) * (self.point.micro_batches + len(self._passes) - 1)

    @property
    def bubble(self) -> float:
        """Idle share of a pipeline's ranks where all stages are alike."""
        behind = self.setting.config.parallel.pipeline - 1
        return behind / (self.point.micro_batches + behind)

    @property
    def idle(self) -> float:
        """The same where a stage takes the time of its FLOPs: the others wait for the slowest too."""
        return 1 - sum(self._passes) * self.point.micro_batches / (len(self._passes) * self.critical)

    @property
    def peak_bytes(self) -> int:
        """What `megaokd plan` says of the rank that needs most."""
        ranks = range(self.setting.config.parallel.pipeline)
        return max(rank_memory(self.setting, rank).peak for rank in ranks)

    @property
    def kept_bytes(self) -> dict[str, int]:
        """What each model keeps for backward of a micro-batch, on the first pipeline rank."""
        setting = self.setting
        parts = {"student": setting.students[0], "teacher": setting.teachers[0]}
        recompute = setting.config.parallel.recompute
        return {
            name: part_cost(part, setting.shape(part), recompute=recompute).kept
            for name, part in parts.items()
            if part is not None
        }
