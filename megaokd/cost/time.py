"""How long a step takes, from FLOPs, bytes and the constants of `hardware`: an estimate, and its parts.

    compute   a stage's FLOPs / t, by the rate of matrix products
    tensor    all-reduce: 2 (n - 1) / n of its bytes over a link, all-gather and reduce-scatter: (n - 1) / n (ring)
    pipeline  what is sent, over a link
    bubble    (P - 1) / (v M) of the slowest rank's share of the above: while the pipeline fills and drains
    data      gradients summed over copies, row groups and replicas, weights gathered, after the last micro-batch;
              nothing overlaps it
    writing   of the student's own responses, on average over the steps (`writing`)
    update    28 bytes an owned element: gradient, weight and two moments read, weight and moments written

Nothing is taken to overlap: the loss's own overlap (kernels/README.md) is small beside the layers' sums.
"""

from dataclasses import dataclass

from megaokd.cost.communication import closing_traffic, held_on, pass_traffic
from megaokd.cost.hardware import Cluster
from megaokd.cost.setting import Setting
from megaokd.cost.stage_flops import stage_work
from megaokd.cost.traffic import Group, Kind, Traffic, Volume
from megaokd.cost.writing import writing_time

UPDATE_BYTES = 28


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, on the slowest pipeline rank."""

    compute: float
    tensor: float
    pipeline: float
    bubble: float
    data: float
    update: float
    positions: int
    """Of the global batch, padding included."""
    model_flops: float
    """Of the step on one GPU, recomputation and writing left out."""
    writing: float = 0.0

    @property
    def total(self) -> float:
        """The step."""
        return self.compute + self.tensor + self.pipeline + self.bubble + self.data + self.update + self.writing

    @property
    def tokens_per_second(self) -> float:
        """Positions a second, of the whole run."""
        return self.positions / self.total

    @property
    def bubble_share(self) -> float:
        """Of the step."""
        return self.bubble / self.total


def step_time(setting: Setting, cluster: Cluster) -> StepTime:
    """The time of the slowest pipeline rank, and what follows its last micro-batch."""
    parallel = setting.config.parallel
    ranks = [_rank_seconds(setting, cluster, rank) for rank in range(parallel.pipeline)]
    slowest = max(ranks, key=lambda rank: rank.compute + rank.tensor + rank.pipeline)
    busy = slowest.compute + slowest.tensor + slowest.pipeline
    model = sum(
        work.forward + work.backward for work in (stage_work(setting, stage) for stage in range(parallel.num_stages))
    )
    return StepTime(
        compute=slowest.compute,
        tensor=slowest.tensor,
        pipeline=slowest.pipeline,
        bubble=busy * (parallel.pipeline - 1) / (parallel.virtual_stages * setting.micro_batches),
        data=max(rank.data for rank in ranks),
        update=max(rank.update for rank in ranks),
        positions=setting.config.train.global_batch * setting.width,
        model_flops=model * setting.micro_batches * setting.data_parallel / setting.processes,
        writing=writing_time(setting, cluster).expected,
    )


@dataclass(frozen=True)
class _RankSeconds:
    compute: float
    tensor: float
    pipeline: float
    data: float
    update: float


def _rank_seconds(setting: Setting, cluster: Cluster, rank: int) -> _RankSeconds:
    flops = sum(stage_work(setting, stage).total for stage in setting.own_stages(rank))
    passes = _traffic_seconds(setting, cluster, pass_traffic(setting, rank))
    closing = _traffic_seconds(setting, cluster, closing_traffic(setting, rank))
    student, teacher = held_on(setting, rank)
    owned = (student.trained + teacher.trained) / setting.data_parallel
    memory = cluster.gpu.bandwidth * cluster.assumptions.link_efficiency
    return _RankSeconds(
        compute=flops * setting.micro_batches / setting.tp.size / cluster.flops(setting.config),
        tensor=passes["tensor"] + passes["trunk"] + passes["rows"],
        pipeline=passes["pipeline"],
        data=sum(closing.values()),
        update=UPDATE_BYTES * owned / memory,
    )


def _traffic_seconds(setting: Setting, cluster: Cluster, traffic: Traffic) -> dict[Group, float]:
    """Seconds by group. Tensor-parallel ranks are neighbours, among them those of one slice of the student; then the
    replicas, then the stages.
    """
    tensor, data = setting.tp.size, setting.data_parallel
    groups = setting.row_groups
    sizes: dict[Group, tuple[int, int]] = {
        "tensor": (tensor, tensor),
        "trunk": (setting.student_tp.size, tensor),
        "rows": (groups, groups),
        "data": (data, tensor * data),
        "pipeline": (2, 2 * tensor * data),
        "ends": (2, setting.processes),
        "world": (setting.processes, setting.processes),
    }
    total = dict.fromkeys(sizes, 0.0)
    for kind, group, volume in traffic:
        size, span = sizes[group]
        latency = volume.calls * cluster.assumptions.latency_s
        total[group] += latency + _wire_bytes(kind, size, volume) / cluster.bandwidth(span)
    return total


def _wire_bytes(kind: Kind, size: int, volume: Volume) -> float:
    """What a rank sends in a ring of `size`."""
    if kind == "send":
        return volume.bytes
    return volume.bytes * (size - 1) / size * (2 if kind == "all-reduce" else 1)
