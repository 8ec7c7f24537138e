"""What one comparison found, as plain values: medians, FLOPs, utilisation, targets met or missed."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from megaokd.benchmark.measure import CLOCKS, Clock, synchronize
from megaokd.benchmark.step import contenders as who
from megaokd.benchmark.step.ours import Variant
from megaokd.benchmark.step.phases import PHASES
from megaokd.benchmark.step.worker import Contender
from megaokd.benchmark.step.world import World

MATRIX = 2048


def matmul_flops(clock: Clock = "wall") -> float:
    """FLOP/s of one fp32 product of large matrices, as fast as this process can."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a, b = (torch.rand(MATRIX, MATRIX, device=device) for _ in range(2))
    synchronize(device)
    start = CLOCKS[clock]()
    torch.mm(a, b)
    synchronize(device)
    return 2 * MATRIX**3 / (CLOCKS[clock]() - start)


def summarize(
    world: World, variants: Sequence[Variant], found: Mapping[str, Contender], peaks: Sequence[float]
) -> dict[str, Any]:
    """All that the report shows. The first step of each contender compares values and is not timed."""
    peak = statistics.median(peaks)
    named = {variant.name: variant for variant in variants}
    work = {name: variant.flops(world) for name, variant in named.items()}
    rows = {}
    for name, contender in found.items():
        row: dict[str, Any] = {"refused": contender.refused}
        if not contender.refused:
            seconds = [step.seconds for step in contender.steps[1:]]
            row |= {
                "seconds": seconds,
                "median": statistics.median(seconds),
                "process_bytes": contender.process_bytes,
                "tensor_bytes": contender.tensor_bytes,
                "operators": contender.operators,
                "phases": {
                    phase: statistics.median(step.phases[phase] for step in contender.steps[1:])
                    for phase in PHASES
                    if contender.steps[0].phases
                },
            }
            if name in work:
                least = work[name].model_flops / peak
                row |= {"flops": work[name].total, "utilisation": least / row["median"], "least_seconds": least}
                row |= {"least_bytes": _held(world, named[name])}
        rows[name] = row
    input_tokens = world.pair.global_batch * world.pair.sequence
    result = {"title": world.pair.title, "input_tokens": input_tokens, "matmul_flops": peak, "rows": rows}
    return {**result, "targets": targets(rows, reference=world.pair.is_reference)}


def _held(world: World, variant: Variant) -> int:
    """Bytes that a step holds whatever it does: fp32 weights, and of the student gradients and two moments too."""
    pair = world.pair
    teacher = pair.teacher.parameters(pair.vocab) if variant.teacher and not variant.cached else 0
    return 4 * (teacher + 4 * pair.student.parameters(pair.vocab))


def targets(rows: Mapping[str, Mapping[str, Any]], *, reference: bool) -> list[dict[str, Any]]:
    """Each target with the value found; a row that is missing or refused has none and leaves its target out.

    Plain ratios of times are targets of the reference pair alone: what they can be follows from a pair's FLOPs.
    """
    found = []

    def ratio(kind: str, name: str, other: str, other_kind: str | None = None) -> float | None:
        values = [rows.get(name, {}).get(kind), rows.get(other, {}).get(other_kind or kind)]
        return None if None in values else float(values[0]) / float(values[1])  # type: ignore[arg-type]

    def target(
        text: str, value: float | None, limit: float, *, at_least: bool = False, best: float | None = None
    ) -> None:
        if value is not None:
            met = value >= limit if at_least else value <= limit
            bound = {} if best is None else {"best": best}
            found.append({"text": text, "value": value, "limit": limit, "at_least": at_least, "met": met, **bound})

    for name in (who.EVERY, who.QUARTER, who.EIGHTH):
        measured, predicted = ratio("median", name, who.PLAIN), ratio("flops", name, who.PLAIN)
        if measured is not None and predicted is not None:
            target(f"time of {name} / {who.PLAIN}, over the ratio of FLOPs", measured / predicted, 1.1)
    if reference:
        target(f"time of {who.EIGHTH} / {who.PLAIN}", ratio("median", who.EIGHTH, who.PLAIN), 1.25)
        target(f"time of {who.CACHED} / {who.PLAIN}", ratio("median", who.CACHED, who.PLAIN), 0.5)
    for peer, name in ((who.USER, who.QUARTER), (who.USER_PLAIN, who.PLAIN), (who.TRL, who.PLAIN)):
        fastest = ratio("median", peer, name, "least_seconds")
        target(f"tokens/s of {name} / {peer}", ratio("median", peer, name), 1.3, at_least=True, best=fastest)
        smallest = ratio("least_bytes", name, peer, "tensor_bytes")
        target(f"peak of tensors of {name} / {peer}", ratio("tensor_bytes", name, peer), 0.7, best=smallest)
        target(f"peak memory of the process of {name} / {peer}", ratio("process_bytes", name, peer), 0.7)
    shares = [row["phases"]["data"] / row["median"] for row in rows.values() if row.get("phases")]
    target("data's largest share of a step", max(shares, default=None), 0.02)
    return found
