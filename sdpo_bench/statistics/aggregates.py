"""Across rewards: statistics of a method that was trained for, or scored by, several rewards.

Raw rewards have unlike units, so they are never averaged. Gains over the base model, in the base model's own
standard deviations, can be. Most comparisons rest on few seeds; what is then only a description says so.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import trim_mean

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.intervals import ONE_SEED, Estimate, finite
from sdpo_bench.statistics.matrices import compare

DESCRIPTIVE_BELOW = 10
"""Below this number of seeds a percentile bootstrap covers too rarely to be more than a description."""
RESAMPLES = 2000
LEVEL = 0.95


def iqm(gains: object) -> float:
    """Interquartile mean over all runs and rewards: the mean without the lowest and the highest quarter.

    Fewer than four values leave nothing to cut. Source: Agarwal et al., "Deep Reinforcement Learning at the
    Edge of the Statistical Precipice", NeurIPS 2021.

    Raises:
        UsageError: no values, or values that are not finite.
    """
    return float(trim_mean(finite(gains, "gains"), 0.25, axis=None))


def iqms(samples: np.ndarray) -> np.ndarray:
    """:func:`iqm` of each sample, ``[n, ...] -> [n]``, without its checks."""
    values = np.sort(samples.reshape(len(samples), -1), axis=1)
    cut = values.shape[1] // 4
    return np.asarray(values[:, cut : values.shape[1] - cut].mean(axis=1))


def probability_of_improvement(a: object, b: object) -> float:
    """Chance that a run of A beats a run of B, ties one half: Mann-Whitney U/(nm), averaged over rewards.

    Source: Agarwal et al. 2021.

    Args:
        a, b: run scores ``[n]`` and ``[m]``, or ``[n, R]`` and ``[m, R]`` for R rewards.

    Raises:
        UsageError: values that are not finite, or shapes that do not fit.
    """
    x, y = finite(a, "scores of A"), finite(b, "scores of B")
    if x.ndim != y.ndim or x.ndim not in (1, 2) or x.shape[1:] != y.shape[1:]:
        raise UsageError(f"scores must be [n] and [m], or [n, R] and [m, R], got {x.shape} and {y.shape}")
    return float(compare(x[:, None], y[None, :]).mean())


def stratified_bootstrap(
    gains: object,
    statistic: Callable[[np.ndarray], np.ndarray] = iqms,
    *,
    seed: int,
) -> Estimate:
    """95 % percentile interval of a statistic across rewards; descriptive below 10 seeds, and marked so.

    Args:
        gains: ``[R, S, ...]``: R strata (rewards trained for separately), S seeds, then whatever shares the
            training seed (methods, step counts, other rewards of the same run). Seeds are drawn with
            replacement within each stratum; the trailing axes follow jointly.
        statistic: from ``n`` arrays of that shape, ``[n, R, S, ...]``, to one number each, ``[n]``.
        seed: of the resampling; the same seed and data give the same interval.

    Raises:
        UsageError: fewer than two axes, or values that are not finite.
    """
    values = finite(gains, "gains")
    if values.ndim < 2:
        raise UsageError(f"a bootstrap needs gains [strata, seeds, ...], got {values.shape}")
    strata, n_seeds = values.shape[:2]
    value = float(statistic(values[None])[0])
    if n_seeds == 1:
        return Estimate(value, None, None, LEVEL, 1, None, None, None, "bootstrap", ONE_SEED)
    draws = np.random.default_rng(seed).integers(n_seeds, size=(RESAMPLES, strata, n_seeds))
    statistics = statistic(values[np.arange(strata)[:, None], draws])
    low, high = np.quantile(statistics, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    few = n_seeds < DESCRIPTIVE_BELOW
    note = f"descriptive: {n_seeds} seeds, fewer than {DESCRIPTIVE_BELOW}" if few else ""
    return Estimate(
        value, float(low), float(high), LEVEL, n_seeds, None, float(statistics.std(ddof=1)), None, "bootstrap", note
    )
