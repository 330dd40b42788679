"""Ways to fill in the rewards of all steps from a few queried ones, and how far each is from the truth.

Arrays are numpy: ``truth [n, T]`` rewards of the decoded predicted originals, ``similarity [n, T, T]`` cosines of the
predicted originals of any two steps of a trajectory.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEAST_PAIRS = 8
"""Trajectories at a step below which no correlation is computed."""

Rule = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""``(truth, similarity) -> (predicted [n, T], queried [n, T] bool)``; reads the truth at queried steps alone."""


def anchors(similarity: np.ndarray) -> np.ndarray:
    """SDPO's anchor ``[n]``: the inner step least similar to both ends, the earliest of equals."""
    inner = (similarity[:, :, 0] + similarity[:, :, -1])[:, 1:-1]
    return np.asarray(inner.argmin(1) + 1)


def evenly(steps: int, queries: int) -> np.ndarray:
    """Steps at equal distances, both ends among them (the last alone for one query)."""
    return np.unique(np.linspace(0, steps - 1, queries).round().astype(int)) if queries > 1 else np.array([steps - 1])


def _queried(rows: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    np.put_along_axis(mask, rows, True, axis=1)
    return mask


def by_similarity(truth: np.ndarray, similarity: np.ndarray, rows: np.ndarray, *, clamp: bool = True) -> np.ndarray:
    """``r_i = sum_q R_q s_qi / sum_q s_qi`` from queries at ``rows [n, Q]``, which keep their exact rewards.

    Args:
        clamp: negative similarities count as 0, equal weights where none is left (``dense_rewards.predicted_rewards``).
    """
    weights = np.take_along_axis(similarity, rows[:, None, :], axis=2)
    if clamp:
        weights = np.maximum(weights, 0)
        weights = np.where(weights.sum(2, keepdims=True) > 1e-6, weights, 1.0)
    asked = np.take_along_axis(truth, rows, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        predicted = (weights * asked[:, None, :]).sum(2) / weights.sum(2)
    np.put_along_axis(predicted, rows, asked, axis=1)
    return np.asarray(predicted)


def by_interpolation(truth: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Linear in the step between the queries at ``rows [n, Q]``, constant outside them."""
    steps, ordered = np.arange(truth.shape[1]), np.sort(rows, axis=1)
    return np.stack([np.interp(steps, at, values[at]) for at, values in zip(ordered, truth)])


def rules(steps: int, more: tuple[int, ...]) -> dict[str, Rule]:
    """All ways by name, for trajectories of ``steps >= 3``; ``more``: numbers of evenly spaced queries."""

    def fixed(places: np.ndarray, linear: bool) -> Rule:
        def rule(truth: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            rows = np.tile(places, (len(truth), 1))
            predicted = by_interpolation(truth, rows) if linear else by_similarity(truth, similarity, rows)
            return predicted, _queried(rows, truth.shape)

        return rule

    def sdpo(kind: str) -> Rule:
        def rule(truth: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            ends = np.tile([0, steps - 1], (len(truth), 1))
            rows = np.concatenate([ends, anchors(similarity)[:, None]], axis=1)
            if kind == "linear":
                predicted = by_interpolation(truth, rows)
            else:
                predicted = by_similarity(truth, similarity, rows, clamp=kind == "convex")
            return predicted, _queried(rows, truth.shape)

        return rule

    by_name = {
        SDPO: sdpo("convex"),
        OFFICIAL: sdpo("official"),
        SAME_QUERIES: sdpo("linear"),
        MIDDLE: fixed(evenly(steps, 3), linear=False),
        "linear, middle anchor (3)": fixed(evenly(steps, 3), linear=True),
        "similarity, ends (2)": fixed(evenly(steps, 2), linear=False),
        "linear, ends (2)": fixed(evenly(steps, 2), linear=True),
        LAST: fixed(evenly(steps, 1), linear=True),
    }
    for queries in more:
        if 3 < queries < steps:
            by_name[f"similarity, even ({queries})"] = fixed(evenly(steps, queries), linear=False)
            by_name[f"linear, even ({queries})"] = fixed(evenly(steps, queries), linear=True)
    return by_name


SDPO = "similarity, SDPO's anchor (3)"
OFFICIAL = "the same, official weights (3)"
SAME_QUERIES = "linear, SDPO's queries (3)"
MIDDLE = "similarity, middle anchor (3)"
LAST = "last reward alone (1)"


@dataclass(frozen=True)
class Accuracy:
    """How one rule does against the truth."""

    error: np.ndarray
    """``[n]`` mean absolute error over all steps of each trajectory, in units of ``spread``."""
    queries: float
    """Rewards asked for each trajectory."""
    bias: float
    """Mean of predicted minus true over steps that were not asked, in units of ``spread``; NaN if all were."""
    slope: float
    """Of the true on the predicted reward over such steps (1: calibrated); NaN if nothing varies."""
    by_step: np.ndarray
    """``[T]`` mean absolute error of each step, in units of ``spread``."""
    correlation: np.ndarray
    """``[T]`` Spearman's correlation with the truth among trajectories of the same prompt, over those that were not
    asked at the step; NaN where there are too few."""
    spearman: float
    """The same over all prompts and such steps together, prompts not taken out."""
    not_finite: float
    """Share of predictions that are NaN or infinite; they count in nothing else."""

    @property
    def within(self) -> float:
        """Mean of ``correlation`` over the steps that have one."""
        finite = self.correlation[np.isfinite(self.correlation)]
        return float(finite.mean()) if len(finite) else float("nan")


def accuracy(rule: Rule, truth: np.ndarray, similarity: np.ndarray, prompts: np.ndarray, spread: float) -> Accuracy:
    """Apply a rule and measure it.

    Args:
        prompts: ``[n]`` prompt number of each trajectory.
        spread: what errors are divided by.
    """
    predicted, queried = rule(truth, similarity)
    good = np.isfinite(predicted)
    gap = np.where(good, predicted - truth, np.nan)
    open_ = good & ~queried
    slope = spearman = bias = float("nan")
    if open_.sum() >= LEAST_PAIRS:
        bias = float(gap[open_].mean() / spread)
        if np.ptp(predicted[open_]) > 0 and np.ptp(truth[open_]) > 0:
            slope = float(np.polyfit(predicted[open_], truth[open_], 1)[0])
            spearman = float(stats.spearmanr(predicted[open_], truth[open_]).statistic)
    inner = [_within(predicted[:, i], truth[:, i], prompts, open_[:, i]) for i in range(truth.shape[1])]
    return Accuracy(
        np.nanmean(np.abs(gap), axis=1) / spread,
        float(queried.sum(1).mean()),
        bias,
        slope,
        np.nanmean(np.abs(gap), axis=0) / spread,
        np.array(inner),
        spearman,
        float(1 - good.mean()),
    )


def _within(a: np.ndarray, b: np.ndarray, prompts: np.ndarray, chosen: np.ndarray) -> float:
    """Spearman's correlation of what is left of ``a`` and ``b`` when each prompt's mean is taken out."""
    a, b, prompts = a[chosen], b[chosen], prompts[chosen]
    several = np.bincount(prompts)[prompts] > 1
    a, b, prompts = a[several], b[several], prompts[several]
    if len(a) < LEAST_PAIRS:
        return float("nan")
    counts = np.maximum(np.bincount(prompts), 1)
    left = [x - (np.bincount(prompts, x) / counts)[prompts] for x in (a, b)]
    if any(np.ptp(x) < 1e-12 for x in left):
        return float("nan")
    return float(stats.spearmanr(*left).statistic)


def calibration(predicted: np.ndarray, truth: np.ndarray) -> list[tuple[float, float]]:
    """Mean predicted and mean true reward of eight equally full bins of the predicted one."""
    order = np.argsort(predicted, kind="stable")
    parts = [part for part in np.array_split(order, 8) if len(part)]
    return [(float(predicted[part].mean()), float(truth[part].mean())) for part in parts]


def cheapest(errors: Mapping[str, tuple[float, float]], most: float) -> str:
    """The rule with the fewest queries, then the least error, among those whose error is at most ``most``.

    Args:
        errors: ``(queries, error)`` by rule.
    """
    fitting = [name for name, (_, error) in errors.items() if error <= most]
    return min(fitting, key=lambda name: errors[name]) if fitting else ""
