"""How fast a measured quantity grows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Line:
    """y = offset + slope x, with the smallest sum of squared relative errors: no point is too small to count."""

    offset: float
    slope: float
    worst: float
    """Largest distance of a measured value from the line, relative to the value."""

    @classmethod
    def through(cls, x: Sequence[float], y: Sequence[float]) -> "Line":
        """Of at least two points with different x and positive y."""
        values = np.asarray(y, dtype=float)
        scale = np.asarray(x, dtype=float).max()
        columns = np.stack([np.ones(len(x)), np.asarray(x, dtype=float) / scale], axis=1) / values[:, None]
        (offset, slope), *_ = np.linalg.lstsq(columns, np.ones(len(x)), rcond=None)
        worst = np.abs(columns @ np.array([offset, slope]) - 1).max()
        return cls(float(offset), float(slope / scale), float(worst))

    def __call__(self, x: float) -> float:
        """The line's value."""
        return self.offset + self.slope * x


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The slope of log y over log x: 1 where y is proportional to x, 0 where it does not grow."""
    return float(np.polyfit(np.log(np.asarray(x, dtype=float)), np.log(np.asarray(y, dtype=float)), 1)[0])
