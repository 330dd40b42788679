"""What a study hands over: tables, plots as data, and the sentences that its tests allow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdpo_bench.statistics.chart import Chart, Series
from sdpo_bench.statistics.intervals import Estimate
from sdpo_bench.statistics.table import Table


@dataclass(frozen=True)
class Plot:
    """Charts side by side with one legend."""

    name: str
    caption: str
    charts: tuple[Chart, ...]
    columns: int = 2
    size: tuple[float, float] = (4.8, 3.0)
    """Width and height of one chart in inches."""


@dataclass(frozen=True)
class Findings:
    """What a study found; everything in it is computed."""

    conclusion: tuple[str, ...]
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...] = ()


def line(label: str, x: Sequence[float], y: Sequence[float | None]) -> Series:
    """A line without a band through the points that are known."""
    points = [(at, value) for at, value in zip(x, y, strict=True) if value is not None and math.isfinite(value)]
    return Series(label, [at for at, _ in points], [value for _, value in points])


def banded(label: str, x: Sequence[float], found: Sequence[Estimate | None]) -> Series:
    """A line with intervals as its band, which is left out where one of the points has none."""
    points = [(at, estimate) for at, estimate in zip(x, found, strict=True) if estimate is not None]
    lows, highs = [e.low for _, e in points], [e.high for _, e in points]
    whole = [v for v in lows if v is not None], [v for v in highs if v is not None]
    low, high = whole if len(whole[0]) == len(points) == len(whole[1]) else ([], [])
    return Series(label, [at for at, _ in points], [e.value for _, e in points], low, high)
