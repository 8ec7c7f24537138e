"""`parallel.student_tensor=auto` as a number: how many of the tensor-parallel ranks share the student's layers.

Predicted is a whole step (`time`, `communication`, `memory`) with each number that suits the student's heads and the
rows of a micro-batch. The fastest is taken if it is `LEAST_GAIN` times as fast as the largest number, which is the
teacher's where that suits the student, and fits into memory or needs no more than that one.
"""

from dataclasses import dataclass, replace

from megaokd.agreement import from_main
from megaokd.config import Config
from megaokd.cost.communication import step_traffic
from megaokd.cost.hardware import Cluster
from megaokd.cost.machine import this_cluster
from megaokd.cost.memory import largest_rank
from megaokd.cost.setting import Setting
from megaokd.cost.time import step_time
from megaokd.kernels.linear import CPU_BUDGET, GPU_BUDGET
from megaokd.mesh import ParallelMesh
from megaokd.pipeline.blueprint import read_architectures, student_splits

LEAST_GAIN = 1.02
"""Below it, the prediction is not good enough to leave the teacher's layout for."""


@dataclass(frozen=True)
class Candidate:
    """One number of ranks, and what a step is predicted to take with it."""

    ranks: int
    seconds: float
    calls: int
    """Collectives and messages of a rank on the pipeline stage that sends most bytes, in all its groups."""
    bytes: int
    """Of the tensors in them, as `Volume` counts them."""
    peak: int
    """Bytes of memory on the fullest rank."""

    @classmethod
    def of(cls, setting: Setting, cluster: Cluster) -> "Candidate":
        """The setting's own number."""
        volumes = [step_traffic(setting, rank).total for rank in range(setting.config.parallel.pipeline)]
        most = max(volumes, key=lambda volume: volume.bytes)
        peak = largest_rank(setting)[1].peak
        return cls(setting.student_tp.size, step_time(setting, cluster).total, most.calls, most.bytes, peak)

    def told(self) -> str:
        """For a sentence."""
        return (
            f"{self.ranks}: {self.seconds * 1e3:.3g} ms, {self.calls} calls with {self.bytes / 1e9:.3g} GB, "
            f"peak {self.peak / 1e9:.3g} GB"
        )


@dataclass(frozen=True)
class Choice:
    """The number, and those that it was chosen from."""

    ranks: int
    candidates: tuple[Candidate, ...]
    """By their ranks, ascending."""
    machine: str

    def sentence(self) -> str:
        """For the user, at the start of a run and in a plan."""
        told = "; ".join(candidate.told() for candidate in self.candidates)
        return (
            f"parallel.student_tensor=auto is {self.ranks}, by what a step is predicted to take of a GPU or process "
            f"({self.machine}) with {told}"
        )

    def lines(self) -> list[str]:
        """A table for a plan; nothing where there is no choice. Sizes in GB (10^9 bytes)."""
        if len(self.candidates) < 2:
            return []
        lines = ["", "parallel.student_tensor=auto, a step", "  ranks    step ms     calls         GB    peak GB"]
        for one in self.candidates:
            numbers = f"{one.ranks:>7} {one.seconds * 1e3:>10.0f} {one.calls:>9} {one.bytes / 1e9:>10.3f}"
            lines.append(f"{numbers} {one.peak / 1e9:>10.3f}{'  taken' if one.ranks == self.ranks else ''}")
        return lines


def choose_student_tensor(setting: Setting, cluster: Cluster) -> Choice | None:
    """None where no number is possible: `check_models` says why."""
    possible = student_splits(setting.config, setting.student)
    if not possible:
        return None
    candidates = [Candidate.of(with_student_tensor(setting, ranks), cluster) for ranks in possible]
    widest = candidates[-1]
    room = max(widest.peak, cluster.usable_bytes)
    fastest = min((one for one in candidates if one.peak <= room), key=lambda one: one.seconds)
    best = fastest if widest.seconds >= LEAST_GAIN * fastest.seconds else widest
    return Choice(best.ranks, tuple(candidates), cluster.gpu.name)


def settle_student_tensor(config: Config, vocab_size: int, mesh: ParallelMesh) -> tuple[Config, list[str]]:
    """A run's configuration with a number in the place of `auto`, and why. One broadcast where there is a choice.

    Every position is taken to carry loss. With `train.on_policy`, whose writing is not part of the prediction, `auto`
    stays the teacher's number.
    """
    parallel, width = config.parallel, config.data.widest_batch
    if parallel.student_tensor != "auto" or parallel.tensor == 1 or config.train.on_policy is not None:
        return config, []

    def choose() -> Choice | None:
        student, teacher = read_architectures(config, vocab_size)
        tokens, budget = config.train.micro_batch * width, GPU_BUDGET if mesh.device.type == "cuda" else CPU_BUDGET
        setting = Setting(config, student, teacher, vocab_size, mesh.world_size, width, tokens, budget)
        return choose_student_tensor(setting, this_cluster(mesh.device, mesh.world_size))

    choice = from_main(choose)
    if choice is None:  # refused where the models are checked, with the reason
        return config, []
    settled = replace(config, parallel=replace(parallel, student_tensor=choice.ranks))
    return settled, [choice.sentence()] if len(choice.candidates) > 1 else []


def with_student_tensor(setting: Setting, ranks: int) -> Setting:
    """The same run with a number in the place of `auto`, or of another."""
    config = setting.config
    return replace(setting, config=replace(config, parallel=replace(config.parallel, student_tensor=ranks)))
