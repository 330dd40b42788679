"""Across rewards: statistics of a method that was trained for, or scored by, several rewards.

Raw rewards have unlike units, so they are never averaged. Gains over the base model, in the base model's own
standard deviations, can be. Most comparisons rest on few seeds; what is then only a description says so.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.stats import trim_mean

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.intervals import ONE_SEED, Estimate, check_level, finite, image_spread
from sdpo_bench.statistics.matrices import Endpoint, as_fixed_model, compare, matrix, paired

DESCRIPTIVE_BELOW = 10
"""Below this number of seeds a percentile bootstrap covers too rarely to be more than a description."""
MIN_RESAMPLES = 2000


def standardised_gains(rows: pd.DataFrame, base: pd.DataFrame, *, endpoint: Endpoint) -> pd.DataFrame:
    """Gain over the base model in its own standard deviations: one row per seed, one column per reward.

    Raw rewards have unlike units and are never averaged; these gains can be.

    Args:
        rows: one method, any number of rewards.
        base: the base model under the same rewards; one seed label stands for a fixed model.

    Raises:
        UsageError: as ``score_grid`` and ``paired``; a reward without base rows; rewards with different seeds.
    """
    columns: dict[str, pd.Series] = {}
    for reward in sorted(rows["reward"].unique()):
        tuned, untuned = rows[rows["reward"] == reward], base[base["reward"] == reward]
        if untuned.empty:
            raise UsageError(f"the base model has no scores under reward '{reward}'; evaluate it first")
        spread = image_spread(untuned.fillna({"seed": 0}), endpoint=endpoint)
        if untuned["seed"].nunique(dropna=False) == 1:
            untuned = as_fixed_model(untuned, sorted(set(tuned["seed"])))
        gain = paired(matrix(tuned, endpoint=endpoint), matrix(untuned, endpoint=endpoint))
        columns[reward] = pd.Series(gain.seed_means / spread, index=pd.Index(gain.seeds, name="seed"))
    table = pd.DataFrame(columns)
    if table.isna().to_numpy().any():
        raise UsageError(f"rewards with different seeds cannot share a table: {sorted(columns)}")
    return table


def iqm(gains: object) -> float:
    """Interquartile mean over all runs and rewards: the mean without the lowest and the highest quarter.

    Fewer than four values leave nothing to cut. Source: Agarwal et al., "Deep Reinforcement Learning at the
    Edge of the Statistical Precipice", NeurIPS 2021.

    Raises:
        UsageError: no values, or values that are not finite.
    """
    return float(trim_mean(finite(gains, "gains"), 0.25, axis=None))


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
    statistic: Callable[[np.ndarray], float] = iqm,
    *,
    seed: int,
    resamples: int = MIN_RESAMPLES,
    level: float = 0.95,
) -> Estimate:
    """Percentile interval of a statistic across rewards; descriptive below 10 seeds, and marked so.

    Args:
        gains: ``[R, S, ...]``: R strata (rewards trained for separately), S seeds, then whatever shares the
            training seed (methods, step counts, other rewards of the same run). Seeds are drawn with
            replacement within each stratum; the trailing axes follow jointly.
        statistic: from an array of that shape to one number.
        seed: of the resampling; the same seed and data give the same interval.

    Raises:
        UsageError: fewer than 2,000 resamples, fewer than two axes, values that are not finite.
    """
    values = finite(gains, "gains")
    check_level(level)
    if resamples < MIN_RESAMPLES or values.ndim < 2:
        raise UsageError(
            f"a bootstrap needs gains [strata, seeds, ...], at least {MIN_RESAMPLES} resamples; "
            f"got {values.shape} and {resamples}"
        )
    strata, n_seeds = values.shape[:2]
    value = float(statistic(values))
    if n_seeds == 1:
        return Estimate(value, None, None, level, 1, None, None, None, "bootstrap", ONE_SEED)
    draws = np.random.default_rng(seed).integers(n_seeds, size=(resamples, strata, n_seeds))
    statistics = np.array([statistic(values[np.arange(strata)[:, None], draw]) for draw in draws])
    low, high = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    few = n_seeds < DESCRIPTIVE_BELOW
    note = f"descriptive: {n_seeds} seeds, fewer than {DESCRIPTIVE_BELOW}" if few else ""
    return Estimate(
        value, float(low), float(high), level, n_seeds, None, float(statistics.std(ddof=1)), None, "bootstrap", note
    )
