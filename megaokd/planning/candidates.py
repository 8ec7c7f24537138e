"""The layouts that `megaokd plan --search` tries.

Tensor-parallel sizes within a node, every split of the student inside them, every pipeline that divides what is left,
one or two stages a pipeline rank, micro-batches of powers of two up to `LARGEST_MICRO_BATCH`, sequence parallelism and
recomputation. The rest is the configuration's. ZeRO-1 and ZeRO-2 cost the same here (docs/planning.md), so the stage
is left as it is, and with a pipeline taken as 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any

from megaokd.config import Config, Parallel
from megaokd.config_file import overridden
from megaokd.cost.hardware import Cluster
from megaokd.mesh import divisors
from megaokd.pipeline.blueprint import student_splits
from megaokd.planning.plan import Models

LARGEST_MICRO_BATCH = 16
VARIED = {"parallel": tuple(field.name for field in fields(Parallel)), "train": ("micro_batch", "zero_stage")}
Key = tuple[str, str]
"""A section and a name in it."""


def given_keys(overrides: Sequence[str]) -> list[Key]:
    """Of the keys that the search varies, those that overrides give: it leaves them as they are."""
    values = overridden(overrides)
    return [(section, name) for section, names in VARIED.items() for name in names if name in values.get(section, {})]


def candidates(config: Config, models: Models, cluster: Cluster, given: Sequence[Key]) -> Iterator[Config]:
    """Configurations with the layouts in question and `given` as they are; not all of them can be built."""
    fixed = [(key, value) for key in given if (value := _value(config, key)) != "auto"]
    for candidate in _all(config, models, cluster):
        if all(_value(candidate, key) == value for key, value in fixed):
            yield candidate


def told_given(config: Config, models: Models, cluster: Cluster, given: Sequence[Key]) -> str:
    """Of each key the value and those that are tried, for a sentence; nothing where nothing is tried."""
    tried = list(_all(config, models, cluster))
    return " and ".join(
        f"{'.'.join(key)}={_text(_value(config, key))} "
        f"(tried are {', '.join(map(_text, sorted({_value(candidate, key) for candidate in tried})))})"
        for key in (given if tried else ())
    )


def _all(config: Config, models: Models, cluster: Cluster) -> Iterator[Config]:
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


def _value(config: Config, key: Key) -> Any:
    section, name = key
    return getattr(getattr(config, section), name)


def _text(value: Any) -> str:
    return str(value).lower()
