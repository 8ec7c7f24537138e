"""Every layout of a cluster that can be built, its memory and its time; those that fit, fastest first.

Tried are tensor-parallel sizes within a node, every split of the student inside them, every pipeline that divides what
is left, one or two stages a pipeline rank, micro-batches of powers of two up to `LARGEST_MICRO_BATCH`, sequence
parallelism and recomputation. The rest is the configuration's. ZeRO-1 and ZeRO-2 cost the same here (docs/planning.md),
so the stage is left as it is, and with a pipeline taken as 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megaokd.config import Config, Parallel
from megaokd.cost.hardware import Cluster
from megaokd.cost.memory import largest_rank
from megaokd.errors import UserError
from megaokd.mesh import divisors
from megaokd.pipeline.blueprint import student_splits
from megaokd.planning.plan import Models, Plan, make_plan, make_setting
from megaokd.planning.refused import Refused

LARGEST_MICRO_BATCH = 16
MOST_NODES = 4096


@dataclass(frozen=True)
class Found:
    """Layouts that fit, fastest first, and how many were tried."""

    plans: list[Plan]
    tried: int


def search(config: Config, models: Models, cluster: Cluster, loss_share: float) -> Found:
    """All layouts of the cluster.

    Raises:
        UserError: none fits, or none can be built; says the least that would do, and why layouts were refused.
    """
    fitting, smallest, tried, refused = [], None, 0, Refused()
    for candidate in candidates(config, models, cluster):
        try:
            setting = make_setting(candidate, models, cluster.processes, loss_share)
        except UserError as error:
            refused.add(error)
            continue
        tried += 1
        _, memory = largest_rank(setting)
        if memory.peak <= cluster.usable_bytes:
            fitting.append(make_plan(setting, cluster))
        if smallest is None or memory.peak < smallest[0]:
            smallest = memory.peak, candidate
    if not fitting:
        if smallest is None:
            raise UserError(_none_built(config, cluster, refused))
        told = _none_fits(cluster, *smallest, refused)
        least = _least_nodes(config, models, cluster, loss_share)
        would_do = f"{least} nodes would do" if least else "more nodes alone do not help: shorten the rows"
        raise UserError(f"{told}; {would_do}")
    fitting.sort(key=lambda plan: plan.time.total)
    return Found(fitting, tried)


def candidates(config: Config, models: Models, cluster: Cluster) -> Iterator[Config]:
    """Configurations with the layouts in question; not all of them can be built."""
    train = config.train
    layers = min(arch.num_layers for arch in (models.student, models.teacher) if arch is not None)
    for tensor in _tensor_sizes(models, cluster):
        for pipeline in divisors(cluster.processes // tensor):
            if pipeline > layers:
                continue
            replicas = cluster.processes // (tensor * pipeline)
            zero = 1 if pipeline > 1 else train.zero_stage
            for micro_batch in _micro_batches(train.global_batch, replicas):
                changed = replace(train, micro_batch=micro_batch, zero_stage=zero)
                for parallel in _variants(tensor, pipeline):
                    layout = replace(config, parallel=parallel, train=changed)
                    for ranks in student_splits(layout, models.student):
                        yield replace(layout, parallel=replace(parallel, student_tensor=ranks))


def _tensor_sizes(models: Models, cluster: Cluster) -> list[int]:
    widest = models.teacher if models.teacher is not None else models.student
    return sorted(set(divisors(cluster.gpus_per_node)) & set(widest.tensor_sizes()))


def _micro_batches(global_batch: int, replicas: int) -> list[int]:
    sizes = (2**power for power in range(LARGEST_MICRO_BATCH.bit_length()))
    return [size for size in sizes if global_batch % (replicas * size) == 0]


def _variants(tensor: int, pipeline: int) -> Iterator[Parallel]:
    for recompute in (False, True):
        for split_sequence in (False, True) if tensor > 1 else (False,):
            plain = Parallel(tensor=tensor, pipeline=pipeline, recompute=recompute, sequence_parallel=split_sequence)
            yield plain
            if pipeline > 1:
                yield replace(plain, virtual_stages=2, schedule="interleaved1f1b")


def _none_built(config: Config, cluster: Cluster, refused: Refused) -> str:
    """What `megaokd train` would say of them, or why there was none to try."""
    if refused:
        return f"none of {len(refused)} layouts of {_told(cluster)} can be built; {refused.told()}"
    return (
        f"no layout of {_told(cluster)} can be built: train.global_batch={config.train.global_batch} is a multiple of "
        f"the replicas of none; a multiple of {cluster.processes} suits all"
    )


def _none_fits(cluster: Cluster, peak: int, candidate: Config, refused: Refused) -> str:
    """How much is missing; others, which were refused, might have been smaller."""
    others = f"; {refused.told()}" if refused else ""
    return (
        f"no layout of {_told(cluster)} fits: the smallest needs {peak / 1e9:.0f} GB a GPU of which "
        f"{cluster.usable_bytes / 1e9:.0f} GB are usable (tensor={candidate.parallel.tensor}, "
        f"pipeline={candidate.parallel.pipeline}, "
        f"micro_batch={candidate.train.micro_batch}, recompute={str(candidate.parallel.recompute).lower()}){others}"
    )


def _told(cluster: Cluster) -> str:
    return f"{cluster.nodes} nodes of {cluster.gpus_per_node} x {cluster.gpu.name}"


def _least_nodes(config: Config, models: Models, cluster: Cluster, loss_share: float) -> int | None:
    """The fewest nodes, doubling, on which something fits."""
    nodes = cluster.nodes * 2
    while nodes <= MOST_NODES:
        larger = replace(cluster, nodes=nodes)
        for candidate in candidates(config, models, larger):
            try:
                setting = make_setting(candidate, models, larger.processes, loss_share)
            except UserError:
                continue
            if largest_rank(setting)[1].peak <= larger.usable_bytes:
                return nodes
        nodes *= 2
    return None
