"""What an axis must do, with the value found and whether it is met."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from megaokd.benchmark.growth.axes import PLAIN, RECOMPUTED, SPLIT, Kind
from megaokd.benchmark.growth.fit import Line, exponent

Points = Sequence[Mapping[str, Any]]
LINE_OF_TIME, LINE_OF_MEMORY = 0.1, 0.05
EXPONENT = 0.1
LAYOUT = 1.25
IDLE = 0.05
KEPT = 0.01
AGAIN = 1.1


def checks(kind: Kind, points: Points) -> list[dict[str, Any]]:
    """Those of this kind of axis."""
    if any(point["refused"] for point in points):
        return [_check("points that disagree with the first", sum(bool(point["refused"]) for point in points), 0)]
    judge: dict[Kind, Callable[[Points], list[dict[str, Any]]]] = {
        "growth": _growth,
        "layout": _layout,
        "bubble": _bubble,
        "savings": _savings,
    }
    return judge[kind](points)


def _check(text: str, value: float, limit: float) -> dict[str, Any]:
    """At most `limit`."""
    return {"text": text, "value": value, "limit": limit, "met": value <= limit}


def time_line(points: Points) -> Line:
    """Seconds over FLOPs."""
    return Line.through([point["predicted"]["flops"] for point in points], [point["median"] for point in points])


def memory_line(points: Points) -> Line:
    """Bytes over what is planned, which bends where another moment of the step becomes the peak."""
    return Line.through(
        [point["predicted"]["tensor_bytes"] for point in points], [point["tensor_bytes"] for point in points]
    )


def exponents(points: Points) -> dict[str, float]:
    """Of time and memory over the axis, and of what is predicted of either."""
    places = [point["value"] for point in points]
    return {
        "time": exponent(places, [point["median"] for point in points]),
        "flops": exponent(places, [point["predicted"]["flops"] for point in points]),
        "memory": exponent(places, [point["tensor_bytes"] for point in points]),
        "plan": exponent(places, [point["predicted"]["tensor_bytes"] for point in points]),
    }


def _growth(points: Points) -> list[dict[str, Any]]:
    slopes = exponents(points)
    return [
        _check("time: farthest from offset + FLOPs / speed", time_line(points).worst, LINE_OF_TIME),
        _check(
            f"time: exponent {slopes['time']:.2f}, of FLOPs {slopes['flops']:.2f}; they differ by",
            abs(slopes["time"] - slopes["flops"]),
            EXPONENT,
        ),
        _check("memory: farthest from offset + factor x plan", memory_line(points).worst, LINE_OF_MEMORY),
        _check(
            f"memory: exponent {slopes['memory']:.2f}, planned {slopes['plan']:.2f}; they differ by",
            abs(slopes["memory"] - slopes["plan"]),
            EXPONENT,
        ),
    ]


def _layout(points: Points) -> list[dict[str, Any]]:
    one = points[0]
    timed = [point for point in points[1:] if point["median"] is not None]
    return [
        _check(
            f"time of {point['name']} over that of {one['name']}, over the ratio of FLOPs",
            point["median"] / one["median"] / (point["predicted"]["critical"] / one["predicted"]["critical"]),
            LAYOUT,
        )
        for point in timed
    ]


def _bubble(points: Points) -> list[dict[str, Any]]:
    return [
        _check(f"idle share of {point['name']} micro-batches: distance from the formula", _distance(point), IDLE)
        for point in points
        if point["median"] is not None
    ]


def _distance(point: Mapping[str, Any]) -> float:
    return abs(float(median_idle(point)) - float(point["predicted"]["bubble"]))


def median_idle(point: Mapping[str, Any]) -> float:
    """Of its repetitions."""
    return float(statistics.median_high(point["idle"]))


def _savings(points: Points) -> list[dict[str, Any]]:
    found = [
        _check(
            f"bytes that {point['name']} keeps: relative distance from the prediction",
            abs(kept(point) / kept(point["predicted"]) - 1),
            KEPT,
        )
        for point in points
    ]
    by_name = {point["name"]: point for point in points}
    plain, again = by_name[PLAIN], by_name[RECOMPUTED]
    ratio = again["median"] / plain["median"]
    predicted = again["predicted"]["flops"] / plain["predicted"]["flops"]
    found.append(_check("time of recomputation, over the ratio of FLOPs", ratio / predicted, AGAIN))
    return found


def kept(values: Mapping[str, Any]) -> int:
    """Bytes that both models keep, measured or predicted."""
    return sum(values["kept_bytes"].values())


def saved(points: Points) -> list[tuple[str, float, float]]:
    """Name, share of the bytes kept that is saved beside the same without, and the share predicted."""
    by_name = {point["name"]: point for point in points}
    rows = []
    for name, point in by_name.items():
        plain = by_name[PLAIN if point["processes"] == 1 else SPLIT]
        if point is not plain:
            rows.append((name, 1 - kept(point) / kept(plain), 1 - kept(point["predicted"]) / kept(plain["predicted"])))
    return rows
