"""A step of this project, built and run as training builds and runs it."""

from dataclasses import dataclass

from megaokd.benchmark.measure import Clock
from megaokd.benchmark.step.phases import PhaseClock, observe
from megaokd.benchmark.step.world import World
from megaokd.config import (
    Checkpoint,
    Config,
    Data,
    Objective,
    OnlineGroup,
    OnlineModules,
    Optimizer,
    OptimizerGroup,
    Parallel,
    Student,
    Teacher,
    Train,
    TrunkCache,
)
from megaokd.cost.flops import StepFlops, StepMethod, StepTokens, count_step
from megaokd.engine.report import StepReport
from megaokd.mesh import build_mesh, start_distributed
from megaokd.models.huggingface_config import read_architecture
from megaokd.run import build_run

LEARNING_RATE = 1e-4
TOTAL_STEPS = 1000


@dataclass(frozen=True)
class Variant:
    """One way to train the pair's student."""

    name: str
    teacher: bool = True
    online_layers: int | None = None
    """The teacher's last layers that carry LoRA; None: it is frozen."""
    cached: bool = False
    recompute: bool = False

    def config(self, world: World) -> Config:
        """The run's configuration."""
        online = None if self.online_layers is None else OnlineModules(layers=self.online_layers)
        cache = TrunkCache(path=str(world.root / "trunk")) if self.cached else None
        pair = world.pair
        constant = {"lr": LEARNING_RATE, "schedule": "constant"}
        return Config(
            data=Data(train=world.data, sequence_length=pair.sequence),
            teacher=Teacher(path=world.teacher if self.teacher else None, online=online, cache=cache),
            student=Student(path=world.student),
            objective=Objective(),
            parallel=Parallel(recompute=self.recompute),
            optimizer=Optimizer(student=OptimizerGroup(**constant), online=OnlineGroup(**constant)),  # type: ignore[arg-type]
            train=Train(steps=TOTAL_STEPS, global_batch=pair.global_batch, micro_batch=pair.micro_batch),
            checkpoint=Checkpoint(folder=str(world.root / "run" / self.name)),
        )

    def flops(self, world: World) -> StepFlops:
        """Of one step; every sequence is full, and half of its labels carry loss."""
        pair = world.pair
        student = read_architecture(world.student)
        teacher = read_architecture(world.teacher) if self.teacher else None
        tokens = StepTokens(pair.global_batch, pair.sequence, pair.loss_tokens)
        return count_step(student, teacher, tokens, StepMethod.of(self.config(world)))


class OurStep:
    """A run that makes one step when asked to; the clock says where its time went."""

    def __init__(self, variant: Variant, world: World, clock: Clock = "wall") -> None:
        config = variant.config(world)
        device = start_distributed(config.train.timeout_s)
        self._run = build_run(config, build_mesh(config.parallel, device))
        self.clock = PhaseClock(device, clock)
        self._step = observe(self._run, self.clock)

    def __call__(self, step: int) -> dict[str, float]:
        """Metrics and gradient norms."""
        self.clock.start()
        self.clock.switch("data")
        batch = self._run.train_batches.batch(step)
        self.clock.switch("rest")
        report = self._step(step, batch)
        self.clock.switch("rest")
        return values_of(report)


def values_of(report: StepReport) -> dict[str, float]:
    """Metrics and gradient norms of a step, which are compared."""
    return report.metrics | {f"norm of {name}": norm for name, norm in report.norms.items()}
