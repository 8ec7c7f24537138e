"""Every layout of a cluster that can be built, its memory and its time; those that fit, fastest first."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from megaokd.config import Config
from megaokd.cost.hardware import Cluster
from megaokd.cost.memory import largest_rank
from megaokd.errors import UserError
from megaokd.planning.candidates import Key, candidates, told_given
from megaokd.planning.plan import Models, Plan, make_plan, make_setting
from megaokd.planning.refused import Refused

MOST_NODES = 4096


@dataclass(frozen=True)
class Found:
    """Layouts that fit, fastest first, and how many were tried."""

    plans: list[Plan]
    tried: int


def search(config: Config, models: Models, cluster: Cluster, loss_share: float, given: Sequence[Key] = ()) -> Found:
    """All layouts of the cluster, those apart that differ from the configuration in a key of `given`.

    Raises:
        UserError: none fits, or none can be built; says the least that would do, and why layouts were refused.
    """
    fitting, smallest, tried, refused = [], None, 0, Refused()
    for candidate in candidates(config, models, cluster, given):
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
            raise UserError(_none_built(config, models, cluster, given, refused))
        told = _none_fits(cluster, *smallest, refused)
        least = _least_nodes(config, models, cluster, loss_share, given)
        would_do = f"{least} nodes would do" if least else "more nodes alone do not help: shorten the rows"
        raise UserError(f"{told}; {would_do}")
    fitting.sort(key=lambda plan: plan.time.total)
    return Found(fitting, tried)


def _none_built(config: Config, models: Models, cluster: Cluster, given: Sequence[Key], refused: Refused) -> str:
    """What `megaokd train` would say of them, or why there was none to try."""
    if refused:
        return f"none of {len(refused)} layouts of {_told(cluster)} can be built; {refused.told()}"
    if told := told_given(config, models, cluster, given):
        return f"--search tries no layout of {_told(cluster)} with {told}; leave out --search to plan that one layout"
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


def _least_nodes(
    config: Config, models: Models, cluster: Cluster, loss_share: float, given: Sequence[Key]
) -> int | None:
    """The fewest nodes, doubling, on which something fits."""
    nodes = cluster.nodes * 2
    while nodes <= MOST_NODES:
        larger = replace(cluster, nodes=nodes)
        for candidate in candidates(config, models, larger, given):
            try:
                setting = make_setting(candidate, models, larger.processes, loss_share)
            except UserError:
                continue
            if largest_rank(setting)[1].peak <= larger.usable_bytes:
                return nodes
        nodes *= 2
    return None
