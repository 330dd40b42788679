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
    """The y axis is a difference: it includes 0, and the line y = 0 is drawn."""
    note: str = ""
    """What a reader must know before reading the lines, beside the title."""


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


def chart_data(chart: Chart) -> dict[str, object]:
    """The chart as plain data for JSON."""
    series = []
    for line in chart.series:
        named = {"x": line.x, "y": line.y, "low": line.low, "high": line.high}
        series.append({"label": line.label, **{key: list(values) for key, values in named.items()}})
    return {"title": chart.title, "x_label": chart.x_label, "y_label": chart.y_label, "series": series}
