"""The figures of a comparison, as PNG files. Drawn by matplotlib, which comes with the extra `report`."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megaokd.comparison.results import JUDGED, MEASURES, Curve, MethodResult, Results, higher_is_better, kind_of
from megaokd.comparison.toy import ToyFit, original, positions

FIGURES = {
    "quality.png": (
        "Quality against training time",
        "A small point is a seed, the large one a method's mean; a ring, where there is one, is the mean with the time "
        "that the teacher took to write the method's data. A method far worse than the rest is named above the frame.",
    ),
    "loss.png": (
        "Loss",
        "The student's cross-entropy over its updates, on training batches (dashed; text that the student has "
        "written among them, where a method trains on it) and on the validation data. What lies far above the rest is "
        "cut off.",
    ),
    "drift.png": (
        "Drift of the teacher",
        "KL(adapted || original) on the validation data: how far the teacher has moved.",
    ),
    "agreement.png": (
        "Agreement",
        "How often student and teacher, the adapted one where it adapts, have the same most likely token, on the "
        "validation data.",
    ),
}
"""File -> heading, what it shows."""
TOY_FIGURE = "toy.png"
_CURVES = {
    "loss.png": (("train/student_ce", "validation/student_ce"), "cross-entropy, nats a token"),
    "drift.png": (("validation/teacher_drift",), "KL(adapted || original), nats"),
    "agreement.png": (("validation/top1_agreement",), "top-1 agreement"),
}
"""File -> names in log.jsonl, the label of their axis."""


def draw_figures(results: Results, time: str, folder: Path) -> list[str]:
    """Write those of `FIGURES` that there is something to show in, time by the measure `time`; their names."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    methods = results.methods
    drawn = []
    for name in FIGURES:
        figure = Figure(figsize=(9, max(4.0, 0.19 * len(methods))), layout="constrained")
        FigureCanvasAgg(figure)
        path = folder / name
        path.unlink(missing_ok=True)
        curves = _CURVES.get(name)
        shown = _draw_curves(figure, methods, *curves) if curves else _draw_quality(figure, results, time)
        if shown:
            figure.savefig(path, dpi=120)
            drawn.append(name)
    return drawn


def draw_toy(fits: Sequence[ToyFit], folder: Path) -> None:
    """A panel a fit: the original teacher, the student, and the teacher where it has moved."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    x, teacher = positions().numpy(), original().numpy()
    for index, (fit, axis) in enumerate(zip(fits, figure.subplots(1, len(fits), sharey=True), strict=True)):
        axis.fill_between(x, teacher, color="0.85", label="original teacher")
        axis.plot(x, fit.student.numpy(), color=_color(index), linewidth=1.6)
        if fit.moved > 0.001:
            axis.plot(x, fit.teacher.numpy(), color="0.3", linewidth=0.9, linestyle="--", label="moved teacher")
        axis.set(title=fit.name, yticks=[])
        axis.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(folder / TOY_FIGURE, dpi=120)


def _draw_quality(figure: Any, results: Results, time: str) -> bool:
    methods = results.methods
    shown = [
        key for key in results.measures if kind_of(key) in JUDGED and any(key in method.measures for method in methods)
    ]
    if not shown:
        return False
    figure.set_figwidth(max(9, 3 * len(shown)))
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for key, axis in zip(shown, axes, strict=True):
        _draw_methods(axis, methods, key, time)
        axis.set(xlabel=MEASURES[time], ylabel=results.measures[key])
    _legend(figure, axes[0])
    return True


def _draw_methods(axis: Any, methods: Sequence[MethodResult], key: str, time: str) -> None:
    means = {}
    for index, method in enumerate(methods):
        if key not in method.measures:
            continue
        seconds, values = method.measures[time], method.measures[key]
        color, marker = _color(index), _marker(index)
        axis.scatter(seconds.values, values.values, s=14, alpha=0.5, color=color, linewidths=0)
        axis.scatter(seconds.mean, values.mean, s=60, color=color, marker=marker, label=method.name)
        writing = method.writing_seconds(time)
        if writing is not None:
            axis.scatter(seconds.mean + writing, values.mean, s=60, facecolors="none", edgecolors=color, marker=marker)
        means[method.name] = values.mean
    outside = _cut(axis, means, higher=higher_is_better(key))
    if outside:
        axis.set_title("\n".join(f"outside: {name}, {means[name]:.2f}" for name in outside), fontsize="small")


def _cut(axis: Any, values: Mapping[Any, float], *, higher: bool) -> list[Any]:
    """Frame `values` without those that are far worse than the rest; the keys of these.

    Far: further from the quartile than three times the quartiles' distance. One such value would press all others
    together.
    """
    if len(values) < 4:
        return []
    sign = -1.0 if higher else 1.0
    low, _, high = statistics.quantiles([sign * value for value in values.values()], n=4, method="inclusive")
    outside = [key for key, value in values.items() if sign * value > high + 3.0 * (high - low)]
    if outside:
        inside = [value for key, value in values.items() if key not in outside]
        margin = 0.08 * (max(inside) - min(inside))
        axis.set_ylim(min(inside) - margin, max(inside) + margin)
    return outside


def _draw_curves(figure: Any, methods: Sequence[MethodResult], names: Sequence[str], label: str) -> bool:
    """The last of `names` is drawn with markers, others dashed; whether any method has one of them."""
    axis = figure.subplots()
    framed: dict[tuple[str, str, int], float] = {}
    for index, method in enumerate(methods):
        present = [name for name in names if method.curves.get(name)]
        for name in present:
            mean = _mean_curve(method.curves[name])
            style = (
                {"linewidth": 1.6, "marker": _marker(index), "markersize": 4}
                if name == names[-1]
                else {"linewidth": 0.8, "linestyle": "--"}
            )
            framed |= {(method.name, name, step): value for step, value in mean.items()}
            legend = method.name if name == present[-1] else None
            axis.plot(list(mean), list(mean.values()), color=_color(index), label=legend, **style)
    axis.set(xlabel="student updates", ylabel=label)
    if not axis.lines:
        return False
    if len(names) > 1:
        _cut(axis, framed, higher=False)
    _legend(figure, axis)
    return True


def _mean_curve(curves: Sequence[Curve]) -> Curve:
    """Over seeds, at the steps that all of them have."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {step: statistics.fmean(curve[step] for curve in curves) for step in steps}


def _legend(figure: Any, axis: Any) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")


def _color(index: int) -> Any:
    """The same in every figure; ten, then they come again with another marker."""
    from matplotlib import colormaps

    return colormaps["tab10"](index % 10)


def _marker(index: int) -> str:
    return "osD^vP"[index // 10 % 6]
