"""Which share of a step's time each kind of operator takes, by torch's profiler, whoever made the step."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

KINDS = ("products", "attention", "the rest")
"""Matrix products; fused attention, forward and backward; all else that torch runs, element by element mostly."""

_PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"}
_ATTENTION = "_scaled_dot_product"


def operator_shares(action: Callable[[], object]) -> dict[str, float]:
    """The share of each of `KINDS` in the operators' own time on the CPU; a launch counts, what a GPU does not."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        action()
    seconds = dict.fromkeys(KINDS, 0.0)
    for event in record.key_averages():
        seconds[_kind(event.key)] += event.self_cpu_time_total
    total = sum(seconds.values())
    return {kind: value / total for kind, value in seconds.items()}


def _kind(name: str) -> str:
    operator = name.removeprefix("aten::")
    if operator in _PRODUCTS:
        return KINDS[0]
    return KINDS[1] if operator.startswith(_ATTENTION) else KINDS[2]
