"""Charts as data: lines with bands and rows of intervals. Drawing is in ``plots``."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Series:
    """One line; ``low`` and ``high`` (same length, or empty) are its band."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """One pair of axes."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    steps: bool = False
    """The x axis counts denoising steps: doublings at equal distances, a tick at each value."""
    zero: bool = False
    """Draw the line y = 0."""


@dataclass(frozen=True)
class Dot:
    """One row of an interval plot; no interval for one seed."""

    label: str
    value: float
    low: float | None
    high: float | None


def band(curves: Sequence[tuple[Sequence[float], Sequence[float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Curves ``(x, y)`` on a common grid: ``x [n]`` and ``y [curves, n]``, over the range that all of them cover."""
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.unique(np.concatenate([np.asarray(x, dtype=float) for x, _ in curves]))
    grid = grid[(grid >= start) & (grid <= end)]
    return grid, np.stack([np.interp(grid, x, y) for x, y in curves])
