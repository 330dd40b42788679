"""Charts as data: lines with bands and rows of intervals. Drawing is in ``plots``."""

from collections.abc import Sequence
from dataclasses import dataclass


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
