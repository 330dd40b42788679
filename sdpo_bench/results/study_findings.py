"""Results of a study: tables, plots as data, and the sentences that its tests allow."""

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
    """Results of a study, all computed from its runs."""

    conclusion: tuple[str, ...]
    tables: tuple[Table, ...]
    plots: tuple[Plot, ...] = ()


def line(label: str, x: Sequence[float], y: Sequence[float | None]) -> Series:
    """A line without a band through the finite points."""
    points = [(at, value) for at, value in zip(x, y, strict=True) if value is not None and math.isfinite(value)]
    return Series(label, [at for at, _ in points], [value for _, value in points])


def banded(label: str, x: Sequence[float], estimates: Sequence[Estimate | None]) -> Series:
    """A line with its intervals as a band; no band if one of the points has no interval."""
    points = [(at, estimate) for at, estimate in zip(x, estimates, strict=True) if estimate is not None]
    lows = [estimate.low for _, estimate in points if estimate.low is not None]
    highs = [estimate.high for _, estimate in points if estimate.high is not None]
    if len(lows) < len(points) or len(highs) < len(points):
        lows, highs = [], []
    return Series(label, [at for at, _ in points], [estimate.value for _, estimate in points], lows, highs)
