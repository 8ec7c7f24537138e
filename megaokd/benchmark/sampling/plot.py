"""The plot of all pairs, drawn by matplotlib, which comes with the extra `report`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megaokd.benchmark.sampling.updates import CACHED, OKD, ON_POLICY

CLAIM = 4.0
"""What the paper says of the time of training: OKD needs up to a fourth."""
_COLORS = ("#1f6fb4", "#d9541e", "#3a9a4b", "#8a4fb0", "#7a7a7a")


def draw(comparisons: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A column a pair, a row without and one with the cache: measured as points on lines, predicted dashed."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(comparisons) + 1.6, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(comparisons), squeeze=False, sharex=True, sharey="row")
    for column, comparison in enumerate(comparisons):
        for row, name in enumerate((OKD, CACHED)):
            axis = axes[row, column]
            _panel(axis, comparison, name)
            if row == 0:
                axis.set_title(f"teacher {comparison['ratio']:.1f} x student", fontsize="medium")
            else:
                axis.set_xlabel("tokens of a response")
            if column == 0:
                axis.set_ylabel(f"on-policy / {name}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize="small")
    figure.savefig(path, dpi=120)


def _panel(axis: Any, comparison: Mapping[str, Any], name: str) -> None:
    batches = sorted({cell["rows"] for cell in comparison["cells"]})
    for color, rows in zip(_COLORS, batches, strict=False):
        cells = sorted((c for c in comparison["cells"] if c["rows"] == rows), key=lambda cell: cell["response"])
        lengths = [cell["response"] for cell in cells]
        for key, style in (("median", {"marker": "o", "markersize": 4}), ("predicted", {"linestyle": "--"})):
            ratios = [cell[key][ON_POLICY] / cell[key][name] for cell in cells]
            label = f"batch {rows}, {'measured' if key == 'median' else 'predicted'}"
            axis.plot(lengths, ratios, color=color, linewidth=1.4, label=label, **style)
    axis.axhline(CLAIM, color="0.4", linewidth=0.9, linestyle=":", label="4 x, the paper's claim")
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
