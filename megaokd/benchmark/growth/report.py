"""growth.md, growth.json and growth.png: the newest measurement of each axis."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megaokd.benchmark.growth.axes import AXES
from megaokd.benchmark.growth.checks import checks, exponents, kept, median_idle, memory_line, saved, time_line
from megaokd.benchmark.growth.figure import FIGURE, draw
from megaokd.benchmark.newest import keep_newest
from megaokd.evaluation.environment import environment_lines
from megaokd.evaluation.report import markdown_table

_HEAD = f"""# Growth of time and memory of a step

Medians of interleaved repetitions, one thread a process; +- is half of the distance between the quartiles. Time is that
of the slowest rank, memory the peak of tensors on the largest, by the allocator's events; *plan* is what `megaokd plan`
says of that peak from the architectures alone. FLOPs are those of matrix products (`megaokd/cost/flops.py`), attention
as whole squares: its quadratic part is in them. *Line* is the fit of time over FLOPs, an offset and a speed, which is
linear in the axis wherever FLOPs are. Peaks of memory are compared with a line over the plan, which bends where another
moment of the step becomes the peak. Exponents are slopes of logarithms over the axis: below 1 where some of a step does
not grow with it. A point with more processes than cores is not timed. Points of one axis that train the same models on
the same batches agree in losses and gradient norms of the first step (1e-5, relative).

![Time and memory over each axis, idle shares of a pipeline, bytes that layouts keep]({FIGURE})
"""


def write_report(folder: Path, entry: dict[str, Any]) -> str:
    """Put this axis in the place of its last measurement; returns the whole page."""
    order = list(AXES)
    entries = keep_newest(folder / "growth.json", entry, "axis", lambda one: order.index(one["axis"]))
    draw(entries, folder)
    page = "\n".join([_HEAD, _summary(entries), "", *(_section(one) for one in entries)])
    (folder / "growth.md").write_text(page, encoding="utf-8")
    return page


def _summary(entries: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for entry in entries:
        found = checks(AXES[entry["axis"]].kind, entry["points"])
        missed = sum(not check["met"] for check in found)
        verdict = f"**{missed} of {len(found)} missed**" if missed else "met"
        rows.append([entry["title"], AXES[entry["axis"]].law, verdict])
    return markdown_table(("", "expected", ""), rows)


def _section(entry: Mapping[str, Any]) -> str:
    kind, points = AXES[entry["axis"]].kind, entry["points"]
    tables = {"growth": _growth, "layout": _layout, "bubble": _bubble, "savings": _savings}
    lines = [f"## {entry['title']}", "", f"{entry['about']}.", "", f"    {entry['command']}", ""]
    lines += [*environment_lines(entry["environment"]), "", tables[kind](points), ""]
    return "\n".join([*lines, *map(_check, checks(kind, points)), ""])


def _check(check: Mapping[str, Any]) -> str:
    met = "met" if check["met"] else "**missed**"
    return f"- {check['text']}: {check['value']:.3f}, wanted <= {check['limit']}: {met}"


def _time(point: Mapping[str, Any]) -> list[str]:
    if point["median"] is None:
        return ["", ""]
    quartiles = statistics.quantiles(point["seconds"], n=4) if len(point["seconds"]) > 1 else [0.0] * 3
    return [f"{1e3 * point['median']:.0f}", f"{(quartiles[2] - quartiles[0]) / 2 / point['median']:.0%}"]


def _memory(point: Mapping[str, Any]) -> list[str]:
    planned = point["predicted"]["tensor_bytes"]
    return [
        *(f"{size / 1e6:.0f}" for size in (point["tensor_bytes"], planned)),
        f"{point['tensor_bytes'] / planned:.2f}",
    ]


_MEMORY = ("MB", "plan", "x plan")


def _growth(points: Sequence[Mapping[str, Any]]) -> str:
    line, memory, slopes = time_line(points), memory_line(points), exponents(points)
    rows = []
    for point in points:
        flops = point["predicted"]["flops"]
        fitted = [f"{flops / 1e9:.1f}", f"{1e3 * line(flops):.0f}"]
        rows.append([point["name"], *_time(point), *fitted, *_memory(point)])
    exponent_row = ["exponent", f"{slopes['time']:.2f}", "", f"{slopes['flops']:.2f}", ""]
    rows.append([*exponent_row, f"{slopes['memory']:.2f}", f"{slopes['plan']:.2f}", ""])
    rows.append(["farthest from line", "", "", "", f"{line.worst:.1%}", f"{memory.worst:.1%}", "", ""])
    note = f"\n\nThe line: {1e3 * line.offset:.0f} ms + FLOPs / ({1e-9 / line.slope:.0f} GFLOP/s)."
    return markdown_table(("", "ms", "+-", "GFLOP", "line, ms", *_MEMORY), rows) + note


def _layout(points: Sequence[Mapping[str, Any]]) -> str:
    one = points[0]
    rows = []
    for point in points:
        ratio = "" if point["median"] is None else f"{point['median'] / one['median']:.2f}"
        predicted = point["predicted"]["critical"] / one["predicted"]["critical"]
        rows.append([_name(point), *_time(point), ratio, f"{predicted:.2f}", *_memory(point)])
    return markdown_table(("", "ms", "+-", f"x {one['name']}", "FLOPs", *_MEMORY), rows)


def _bubble(points: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            _name(point),
            *_time(point),
            *([""] if point["median"] is None else [f"{median_idle(point):.1%}"]),
            f"{point['predicted']['bubble']:.1%}",
            f"{point['predicted']['idle']:.1%}",
            *_memory(point),
        ]
        for point in points
    ]
    header = ("micro-batches", "ms", "+-", "idle", "(P-1)/(M+P-1)", "with unequal stages", *_MEMORY)
    return markdown_table(header, rows)


def _savings(points: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for point in points:
        sizes = [
            f"{values['kept_bytes'][model] / 1e6:.2f}"
            for model in ("student", "teacher")
            for values in (point, point["predicted"])
        ]
        flops = point["predicted"]["flops"] / 1e9
        rows.append([_name(point), *sizes, f"{kept(point) / 1e6:.2f}", *_time(point), f"{flops:.1f}", *_memory(point)])
    header = (
        "",
        "student keeps, MB",
        "predicted",
        "teacher keeps, MB",
        "predicted",
        "both",
        "ms",
        "+-",
        "GFLOP",
        *_MEMORY,
    )
    shares = [[name, f"{measured:.1%}", f"{predicted:.1%}"] for name, measured, predicted in saved(points)]
    extra = markdown_table(("", "of the bytes kept, saved", "predicted"), shares)
    return "\n\n".join([markdown_table(header, rows), extra, _again(points)])


def _again(points: Sequence[Mapping[str, Any]]) -> str:
    plain, again = points[0], points[1]
    forward = again["predicted"]["repeated"] / again["predicted"]["forward"]
    time = again["median"] / plain["median"]
    flops = again["predicted"]["flops"] / plain["predicted"]["flops"]
    return (
        f"In one process recomputation makes {forward:.2f} of the layers' forward once more: the step takes {time:.2f} "
        f"times as long, {flops:.2f} by FLOPs."
    )


def _name(point: Mapping[str, Any]) -> str:
    return f"{point['name']} (disagrees: {point['refused']})" if point["refused"] else str(point["name"])
