"""Line charts as inline SVG."""

import html
import math
from collections.abc import Mapping, Sequence

Series = Sequence[tuple[float, float]]
"""Points (step, value), in the order of steps."""
_WIDTH, _HEIGHT = 380, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 34, 40
_COLORS = ("#1f6fb4", "#d9541e", "#3a9a4b", "#8a4fb0", "#7a7a7a")
_MOST_POINTS = 500


def line_chart(title: str, series: Mapping[str, Series], *, logarithmic: bool = False) -> str:
    """An `<svg>` of the finite points; a long series is thinned. Empty where there is nothing to show.

    logarithmic: the value axis; values that are not positive are left out.
    """
    shown = {name: _thinned([p for p in points if _fits(p[1], logarithmic)]) for name, points in series.items()}
    shown = {name: points for name, points in shown.items() if points}
    if not shown:
        return ""
    steps = [step for points in shown.values() for step, _ in points]
    values = [_scaled(value, logarithmic) for points in shown.values() for _, value in points]
    across, up = _Axis(steps, _LEFT, _WIDTH - _RIGHT), _Axis(values, _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<text x="{_LEFT}" y="14" class="title">{html.escape(title)}</text>', *_legend(list(shown))]
    for tick in up.ticks():
        label = 10**tick if logarithmic else tick
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}" class="grid"/>'
        )
        parts.append(f'<text x="{_LEFT - 6}" y="{up(tick) + 4:.1f}" text-anchor="end">{tick_label(label)}</text>')
    for tick in across.ticks():
        parts.append(f'<text x="{across(tick):.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{tick_label(tick)}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">step</text>')
    for color, points in zip(_COLORS, shown.values(), strict=False):
        places = [f"{across(step):.1f},{up(_scaled(value, logarithmic)):.1f}" for step, value in points]
        parts.append(f'<polyline points="{" ".join(places)}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        if len(points) == 1:
            x, y = places[0].split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>')
    size = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
    return f'<svg {size} role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg>'


def tick_label(value: float) -> str:
    """Short: 20000 is `20k`, 6.5e8 is `650M`; what is below 10000 stands as it is."""
    for suffix, unit, least in (("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e3, 1e4)):
        if abs(value) >= least:
            return f"{value / unit:.4g}{suffix}"
    return f"{value:.4g}"


class _Axis:
    """From values to places on the paper."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        low, high = min(values), max(values)
        margin = 0.0 if high > low else (abs(high) or 1.0) / 2
        self._low, self._high, self._begin, self._end = low - margin, high + margin, begin, end

    def __call__(self, value: float) -> float:
        return self._begin + (value - self._low) / (self._high - self._low) * (self._end - self._begin)

    def ticks(self) -> list[float]:
        """Round values within the axis, some four of them."""
        rough = (self._high - self._low) / 4
        power = 10 ** math.floor(math.log10(rough))
        spacing = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self._low / spacing)
        return [round(n * spacing, 12) for n in range(first, math.floor(self._high / spacing) + 1)]


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], _LEFT
    for color, name in zip(_COLORS, names, strict=False):
        parts.append(f'<rect x="{x}" y="21" width="10" height="4" fill="{color}"/>')
        parts.append(f'<text x="{x + 14}" y="27">{html.escape(name)}</text>')
        x += 26 + 6 * len(name)
    return parts


def _fits(value: float, logarithmic: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not logarithmic)


def _scaled(value: float, logarithmic: bool) -> float:
    return math.log10(value) if logarithmic else value


def _thinned(points: Series) -> Series:
    """Every n-th point and the last one."""
    if len(points) <= _MOST_POINTS:
        return points
    return [*points[:: -(-len(points) // _MOST_POINTS)], points[-1]]
