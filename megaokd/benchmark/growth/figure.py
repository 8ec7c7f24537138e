"""The figure of the page, by matplotlib, which comes with the extra `report`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megaokd.benchmark.growth.axes import AXES
from megaokd.benchmark.growth.checks import median_idle, time_line

FIGURE = "growth.png"
_COLUMNS = 4
_MEASURED, _PREDICTED = "#1f6fb4", "#d9541e"


def draw(entries: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """A panel for the time and one for the memory of each axis, one for the idle shares, one for the bytes kept."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {"growth": (_time, _memory), "layout": (_memory,), "bubble": (_idle,), "savings": (_kept,)}
    wanted = [(panel, entry) for entry in entries for panel in panels[AXES[entry["axis"]].kind]]
    # Times first, so that each stands over its memory where all four axes are there.
    shown = sorted(wanted, key=lambda one: one[0] is not _time)
    rows = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(3.4 * _COLUMNS, 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axis in grid[len(shown) :]:
        axis.set_visible(False)
    for axis, (panel, entry) in zip(grid, shown, strict=False):
        panel(axis, entry["points"])
        axis.set_title(entry["title"], fontsize="small")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize="small")
    figure.savefig(folder / FIGURE, dpi=110)


def _time(axis: Any, points: Sequence[Mapping[str, Any]]) -> None:
    line = time_line(points)
    places = [point["value"] for point in points]
    for point in points:
        axis.plot([point["value"]] * len(point["seconds"]), point["seconds"], ".", color=_MEASURED, alpha=0.4)
    axis.plot(places, [point["median"] for point in points], "o", color=_MEASURED, label="measured")
    fitted = [line(point["predicted"]["flops"]) for point in points]
    axis.plot(places, fitted, "-", color=_PREDICTED, label="offset + FLOPs / speed")
    axis.set(ylabel="seconds", ylim=(0, None), xlim=(0, None))


def _memory(axis: Any, points: Sequence[Mapping[str, Any]]) -> None:
    places = [point["value"] for point in points]
    axis.plot(places, [point["tensor_bytes"] / 1e6 for point in points], "o", color=_MEASURED, label="measured")
    planned = [point["predicted"]["tensor_bytes"] / 1e6 for point in points]
    axis.plot(places, planned, "-", color=_PREDICTED, label="megaokd plan")
    highest = max(max(point["tensor_bytes"] / 1e6 for point in points), *planned)
    axis.set(ylabel="MB, largest rank", ylim=(0, 1.3 * highest), xlim=(0, None))


def _idle(axis: Any, points: Sequence[Mapping[str, Any]]) -> None:
    timed = [point for point in points if point["median"] is not None]
    axis.plot([p["value"] for p in timed], [median_idle(p) for p in timed], "o", color=_MEASURED, label="measured")
    formula = [point["predicted"]["bubble"] for point in points]
    axis.plot([p["value"] for p in points], formula, "-", color=_PREDICTED, label="(P - 1) / (M + P - 1)")
    axis.set(xlabel="micro-batches", ylabel="idle share", ylim=(0, None), xlim=(0, None))


def _kept(axis: Any, points: Sequence[Mapping[str, Any]]) -> None:
    places = range(len(points))
    for offset, color, name, values in (
        (-0.2, _MEASURED, "measured", points),
        (0.2, _PREDICTED, "predicted", [point["predicted"] for point in points]),
    ):
        sizes = [sum(one["kept_bytes"].values()) / 1e6 for one in values]
        axis.barh([place + offset for place in places], sizes, 0.38, color=color, label=name)
    axis.set_yticks(places, [point["name"].replace(", ", "\n") for point in points], fontsize="xx-small")
    axis.invert_yaxis()
    axis.set(xlabel="MB kept for backward")
