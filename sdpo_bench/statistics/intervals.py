"""Intervals and effect sizes: the one routine behind every number that is compared.

A method's uncertainty comes from training it again and from meeting other prompts, not from drawing more
images with one checkpoint. So the primary interval treats training seeds and prompts as crossed random
effects; the number of images is never the number of observations. ``docs/statistics.md`` has the simulated
coverage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import nctdtrinc, stdtr, stdtrit

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.matrices import Matrix

ADVISED_SEEDS = 5
ONE_SEED = "1 seed, no interval"


@dataclass(frozen=True)
class Estimate:
    """A value and its uncertainty; ``low`` and ``high`` are None where there is no honest interval."""

    value: float
    low: float | None
    high: float | None
    level: float
    """Nominal coverage, e.g. 0.95."""
    n_seeds: int
    n_prompts: int | None
    standard_error: float | None
    df: float | None
    """Degrees of freedom of the t distribution; None without one."""
    kind: str
    """What the interval generalises over: ``seeds and prompts``, ``seeds``, ``images`` or ``bootstrap``."""
    note: str = ""

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0. False without an interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def p_value(self, null: float = 0.0) -> float | None:
        """Two-sided p of ``value = null``, agreeing with the interval; None without a t interval."""
        if self.standard_error is None or self.df is None:
            return None
        distance = abs(self.value - null)
        if self.standard_error == 0:
            return 1.0 if distance == 0 else 0.0
        return float(2 * stdtr(self.df, -distance / self.standard_error))

    def detectable(self, power: float = 0.8) -> float | None:
        """The true value whose difference from 0 this estimate's two-sided test finds with probability ``power``.

        From the noncentral t distribution with the estimate's standard error and degrees of freedom; rejections on the
        wrong side, below .0001 at a power of .8, are left out.

        Returns:
            a distance in units of ``value``; None without a t interval.
        """
        if self.standard_error is None or self.df is None:
            return None
        critical = stdtrit(self.df, (1 + self.level) / 2)
        return float(nctdtrinc(self.df, 1 - power, critical)) * self.standard_error

    def clipped(self, low: float, high: float) -> "Estimate":
        """The interval clipped to the possible values (a win rate lies in [0, 1])."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, low), high=min(self.high, high))

    def scaled(self, factor: float) -> "Estimate":
        """The estimate in other units (``factor > 0``); the factor has no error of its own."""
        low, high, error = (None if x is None else x * factor for x in (self.low, self.high, self.standard_error))
        return replace(self, value=self.value * factor, low=low, high=high, standard_error=error)

    @property
    def shown(self) -> float:
        """The value to print: 0 where it is rounding error, below a billionth of the interval's width."""
        if self.low is None or self.high is None or abs(self.value) > 1e-9 * (self.high - self.low):
            return self.value
        return 0.0

    def words(self, digits: int = 3) -> str:
        """For example ``0.12 [0.03, 0.21] (95 %, 5 seeds x 45 prompts)``, followed by the note."""
        interval = "" if self.low is None else f" [{self.low:.{digits}g}, {self.high:.{digits}g}]"
        size = f"{self.n_seeds} seed{'s' * (self.n_seeds != 1)}"
        size += "" if self.n_prompts is None else f" x {self.n_prompts} prompt{'s' * (self.n_prompts != 1)}"
        level = "" if self.low is None else f"{100 * self.level:.4g} %, "
        return f"{self.shown:.{digits}g}{interval} ({level}{size})" + (f"; {self.note}" if self.note else "")


def mean_squares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean squares of seeds, prompts and residual of a two-way layout without replication.

    Args:
        values: ``[..., S, P]`` with S, P >= 2; leading axes are independent layouts.

    Returns:
        three arrays ``[...]``, in squared units of the values.
    """
    n_seeds, n_prompts = values.shape[-2:]
    # Subtracting one value first makes a constant matrix give exactly 0 and keeps digits under an offset.
    x = values - values.min(axis=(-2, -1), keepdims=True)
    grand = x.mean(axis=(-2, -1), keepdims=True)
    seeds, prompts = x.mean(axis=-1, keepdims=True) - grand, x.mean(axis=-2, keepdims=True) - grand
    residual = x - grand - seeds - prompts

    def total(part: np.ndarray) -> np.ndarray:
        return (part**2).sum(axis=(-2, -1))

    return (
        n_prompts * total(seeds) / (n_seeds - 1),
        n_seeds * total(prompts) / (n_prompts - 1),
        total(residual) / ((n_seeds - 1) * (n_prompts - 1)),
    )


def crossed_moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, variance of the mean and degrees of freedom under crossed random seeds and prompts.

    With ``value[s, p] = mean + seed[s] + prompt[p] + residual[s, p]`` the mean over all cells has variance
    ``var_seed/S + var_prompt/P + var_residual/(SP)``; ``(MSs + MSp - MSr)/(SP)`` estimates it without bias.
    It can fall below the residual's share by chance, hence the floor ``MSr/(SP)``. Degrees of freedom, at
    least 1: Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics
    Bulletin 2 (1946).

    Args:
        values: ``[..., S, P]`` with S, P >= 2.

    Returns:
        three arrays ``[...]``: mean, variance (>= 0), df (>= 1; 1 where nothing varies).
    """
    n_seeds, n_prompts = values.shape[-2:]
    ms_seed, ms_prompt, ms_residual = mean_squares(values)
    total = np.maximum(ms_seed + ms_prompt - ms_residual, ms_residual)
    # Ratios rather than squares of mean squares: those of very small scores would underflow to 0.
    scale = np.where(total > 0, total, 1.0)
    spread = (
        (ms_seed / scale) ** 2 / (n_seeds - 1)
        + (ms_prompt / scale) ** 2 / (n_prompts - 1)
        + (ms_residual / scale) ** 2 / ((n_seeds - 1) * (n_prompts - 1))
    )
    df = np.maximum(1.0, 1 / np.where(total > 0, spread, 1.0))
    return values.mean(axis=(-2, -1)), total / (n_seeds * n_prompts), df


def crossed_interval(m: Matrix, level: float = 0.95) -> Estimate:
    """Primary interval: generalises to new training seeds and new prompts (:func:`crossed_moments`).

    One seed gives the value and the words "1 seed, no interval". One prompt cannot speak for other prompts:
    the interval is then :func:`seed_interval`, and says so.

    Raises:
        UsageError: ``level`` outside (0, 1).
    """
    n_seeds, n_prompts = m.values.shape
    if n_seeds == 1 or n_prompts == 1:
        interval = seed_interval(m, level)
        if n_prompts > 1:
            return interval
        note = "1 prompt: nothing is said about other prompts"
        return replace(interval, note=f"{interval.note}; {note}" if interval.note else note)
    mean, variance, df = (float(x) for x in crossed_moments(m.values))
    return _t_interval(m, mean, float(np.sqrt(variance)), df, level, "seeds and prompts")


def crossed_p_values(matrices: Sequence[Matrix]) -> list[float | None]:
    """``crossed_interval(m).p_value()`` of each matrix, all of one shape, in one calculation."""
    if not matrices or 1 in matrices[0].values.shape:
        return [crossed_interval(m).p_value() for m in matrices]
    mean, variance, df = crossed_moments(np.stack([m.values for m in matrices]))
    error = np.sqrt(variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * stdtr(df, -np.abs(mean) / error)
    certain = np.where(mean == 0, 1.0, 0.0)
    return [float(value) for value in np.where(error == 0, certain, p)]


def seed_interval(m: Matrix, level: float = 0.95) -> Estimate:
    """Secondary interval, "on this prompt set": Student's t over the S seed means.

    On a paired difference it equals ``scipy.stats.ttest_rel(a, b).confidence_interval(level)`` of seed means.

    Raises:
        UsageError: ``level`` outside (0, 1).
    """
    means = m.seed_means - m.values.min()  # exact zeros for a constant matrix
    n_seeds, value = len(means), float(m.values.mean())
    if n_seeds == 1:
        check_level(level)
        note = "; ".join(part for part in (m.note, ONE_SEED) if part)
        return Estimate(value, None, None, level, 1, m.values.shape[1], None, None, "seeds", note)
    return _t_interval(m, value, float(means.std(ddof=1) / np.sqrt(n_seeds)), n_seeds - 1.0, level, "seeds")


def _t_interval(m: Matrix, value: float, error: float, df: float, level: float, kind: str) -> Estimate:
    check_level(level)
    half = float(stdtrit(df, (1 + level) / 2)) * error
    note = "; ".join(part for part in (m.note, *_cautions(m, value, error)) if part)
    n_seeds, n_prompts = m.values.shape
    return Estimate(value, value - half, value + half, level, n_seeds, n_prompts, error, df, kind, note)


def _cautions(m: Matrix, value: float, error: float) -> list[str]:
    """Remarks for the reader of an interval with these data."""
    n_seeds, cautions = len(m.seeds), []
    if n_seeds == 2:
        cautions.append(f"warning: 2 seeds leave one degree of freedom; {ADVISED_SEEDS} or more are advised")
    elif n_seeds < ADVISED_SEEDS:
        cautions.append(f"{n_seeds} seeds; {ADVISED_SEEDS} or more are advised")
    tiny = 1e-12 * max(abs(value), float(np.abs(m.values).max()))  # the size of rounding
    if error <= tiny:
        cautions.append("no variation: the zero-width interval reflects identical values, not certainty")
    elif np.ptp(m.seed_means) <= tiny:
        cautions.append("all seeds have the same mean: check that they are different runs")
    return cautions


def check_level(level: float) -> None:
    """Raises UsageError for a level outside (0, 1)."""
    if not 0 < level < 1:
        raise UsageError(f"the level of an interval lies between 0 and 1, got {level}")


def finite(scores: object, what: str) -> np.ndarray:
    """The scores as float64. Raises UsageError, naming ``what``, if there are none or some are not finite."""
    values = np.asarray(scores, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise UsageError(
            f"{what} must be finite numbers, at least one, got {values.size} with "
            f"{int((~np.isfinite(values)).sum())} NaN or infinite"
        )
    return values


def image_standard_error(scores: object) -> Estimate:
    """Standard error of the mean over the images of one run; it says nothing about the method.

    Raises:
        UsageError: no scores, or scores that are not finite.
    """
    values = finite(scores, "image scores").ravel()
    error = float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else None
    return Estimate(
        float(values.mean()),
        None,
        None,
        0.95,
        1,
        None,
        error,
        None,
        "images",
        "standard error over images, one seed, not a method interval",
    )


def effect_size(difference: Estimate, base_spread: float) -> Estimate:
    """The difference in standard deviations of the base model's images.

    The spread (> 0) has no error here: its own sampling error (many images) is small beside the seeds'.
    """
    return difference.scaled(1 / base_spread)
