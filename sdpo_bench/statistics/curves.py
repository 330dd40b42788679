"""Learning curves as numbers: how much training a level takes, and how high a curve lies over a whole budget.

Each training seed has a curve of its own. Everything is computed on the seeds' curves first; intervals are over seeds
(Student's t) and speak of the measured prompts and noise alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sdpo_bench.statistics.chart import Series, band
from sdpo_bench.statistics.intervals import Estimate, seed_interval
from sdpo_bench.statistics.matrices import Matrix


@dataclass(frozen=True, eq=False)
class SeedCurve:
    """The learning curve of one training seed."""

    seed: int
    cost: Mapping[str, np.ndarray]
    """By axis ``[n]``, ascending from 0: what training had cost at each point."""
    rise: np.ndarray
    """``[n]`` mean score minus the base model's; the first is 0."""


@dataclass(frozen=True)
class Reach:
    """How much training takes an arm to a level."""

    amounts: Mapping[int, float | None]
    """By seed; None for a seed that never reaches the level."""
    budgets: Mapping[int, float]
    """By seed: where its curve ends."""
    level: float
    """Of the interval."""

    @property
    def reached(self) -> int:
        """Seeds that reach the level."""
        return sum(amount is not None for amount in self.amounts.values())

    @property
    def estimate(self) -> Estimate | None:
        """Mean over seeds; None where a seed never reaches the level, since leaving it out would flatter the arm."""
        amounts = [amount for amount in self.amounts.values() if amount is not None]
        if len(amounts) < len(self.amounts):
            return None
        return over_seeds(list(self.amounts), amounts, self.level).clipped(0.0, float("inf"))

    @property
    def at_least(self) -> float:
        """A lower bound of the mean: seeds that never reach the level count with their whole budget."""
        amounts = [self.budgets[seed] if amount is None else amount for seed, amount in self.amounts.items()]
        return float(np.mean(amounts))


def over_seeds(seeds: Sequence[int], values: Sequence[float], level: float) -> Estimate:
    """Mean over training seeds with Student's t interval, of one number a seed."""
    matrix = Matrix(np.asarray(values, dtype=float)[:, None], tuple(seeds), ("all prompts",))
    return replace(seed_interval(matrix, level), n_prompts=None)


def first_crossing(y: np.ndarray, height: float) -> float | None:
    """Index, between two points in fractions, at which a polyline first reaches ``height``; None if it never does."""
    reached = np.flatnonzero(y >= height)
    if not len(reached):
        return None
    i = int(reached[0])
    return i - 1 + float((height - y[i - 1]) / (y[i] - y[i - 1])) if i else 0.0


def first_reach(x: np.ndarray, y: np.ndarray, height: float) -> float | None:
    """Smallest ``x`` at which the polyline through ``(x, y)`` reaches ``height``; None if it never does."""
    place = first_crossing(y, height)
    return None if place is None else float(np.interp(place, np.arange(len(x)), x))


def rise_when(curve: SeedCurve, other: SeedCurve, height: float) -> float | None:
    """Rise of ``other`` when ``curve``, of the same run and points, first reaches ``height``; None if it never does."""
    return first_reach(other.rise, curve.rise, height)


def mean_height(x: np.ndarray, y: np.ndarray, end: float) -> float:
    """Area under the polyline from ``x[0]`` to ``end``, divided by that length; ``end`` is at most ``x[-1]``."""
    inside = x < end
    x_part, y_part = np.append(x[inside], end), np.append(y[inside], np.interp(end, x, y))
    return float(np.trapezoid(y_part, x_part) / (end - x[0]))


def reach(curves: Sequence[SeedCurve], axis: str, height: float, level: float) -> Reach:
    """Amount on a cost axis at which each seed first rises to ``height`` above the base model."""
    amounts = {curve.seed: first_reach(curve.cost[axis], curve.rise, height) for curve in curves}
    return Reach(amounts, {curve.seed: float(curve.cost[axis][-1]) for curve in curves}, level)


def mean_rise(curves: Sequence[SeedCurve], axis: str, end: float, level: float) -> Estimate:
    """Area under the curve as the mean rise over the budget up to ``end``, over seeds."""
    heights = [mean_height(curve.cost[axis], curve.rise, end) for curve in curves]
    return over_seeds([curve.seed for curve in curves], heights, level)


def final_rise(curves: Sequence[SeedCurve], level: float) -> Estimate:
    """Rise at the last point of each curve, over seeds."""
    return over_seeds([curve.seed for curve in curves], [float(curve.rise[-1]) for curve in curves], level)


def shared_end(curves: Sequence[SeedCurve], axis: str) -> float:
    """Largest amount on an axis that every curve covers."""
    return min(float(curve.cost[axis][-1]) for curve in curves)


def mean_curve(label: str, curves: Sequence[SeedCurve], axis: str, level: float) -> Series:
    """Mean over seeds with the band of its interval at every point that a seed has; one seed has no band."""
    x, y = band([(curve.cost[axis].tolist(), curve.rise.tolist()) for curve in curves])
    seeds = [curve.seed for curve in curves]
    estimates = [over_seeds(seeds, column, level) for column in y.T]
    low = [e.low for e in estimates if e.low is not None]
    high = [e.high for e in estimates if e.high is not None]
    return Series(label, x.tolist(), [e.value for e in estimates], low, high)


TRACE_POINTS = 25
"""Heights at which a line against another curve is drawn."""


def trace(label: str, both: Sequence[tuple[SeedCurve, SeedCurve]], level: float) -> Series:
    """Rise of each pair's second curve against that of its first one, mean over seeds with the band of its interval.

    Args:
        both: two curves of each seed, at the same points. The line runs from 0 to what every seed's first one reaches.
    """
    seeds = [own.seed for own, _ in both]
    heights = np.linspace(0.0, max(0.0, min(float(own.rise.max()) for own, _ in both)), TRACE_POINTS)
    columns = [[rise_when(own, other, height) for own, other in both] for height in heights]
    estimates = [over_seeds(seeds, [rise for rise in column if rise is not None], level) for column in columns]
    low = [e.low for e in estimates if e.low is not None]
    high = [e.high for e in estimates if e.high is not None]
    return Series(label, heights.tolist(), [e.value for e in estimates], low, high)
