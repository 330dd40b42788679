"""Corrections for many comparisons, and the verdict on one comparison in words.

A table invites its reader to pick the largest number. Every p value of this package belongs to the crossed interval
beside it (``Estimate.p_value``); this module corrects it for having looked at many methods or many step counts.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.intervals import ONE_SEED, Estimate
from sdpo_bench.statistics.matrices import Endpoint

ENDPOINT_WORDS: dict[Literal["few", "mean", "area"], str] = {
    "few": "on the few-step mean (1, 2 and 4 steps)",
    "mean": "on the mean over step counts",
    "area": "on the area under the step curve",
}


def _p_values(p: Sequence[float | None]) -> np.ndarray:
    """A comparison without a test (one seed) counts with p = 1."""
    values = np.array([1.0 if value is None else value for value in p], dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise UsageError(f"p values form a list of numbers in [0, 1], got {p}")
    return values


def holm(p: Sequence[float | None]) -> np.ndarray:
    """Holm's adjusted p values, ``[n]`` in the order given: family-wise error control without assumptions.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).

    Raises:
        UsageError: values outside [0, 1] or NaN.
    """
    values = _p_values(p)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def benjamini_hochberg(p: Sequence[float | None]) -> np.ndarray:
    """Adjusted p values ``[n]`` that control the false discovery rate, for exploratory grids.

    Raises:
        UsageError: values outside [0, 1] or NaN.
    """
    values = _p_values(p)
    return np.asarray(scipy_stats.false_discovery_control(values)) if len(values) else values


def endpoint_p_values(estimates: Mapping[Endpoint, Estimate], primary: Endpoint | None = None) -> dict[Endpoint, float]:
    """The p value that stands for each endpoint of one comparison; endpoints of one seed have none.

    The primary endpoint is one test declared beforehand and keeps its own p. The others are an exploratory family:
    Benjamini-Hochberg over these, without the primary one.
    """
    p_values = {key: p for key, estimate in estimates.items() if (p := estimate.p_value()) is not None}
    others = {key: p for key, p in p_values.items() if key != primary}
    corrected = dict(zip(others, benjamini_hochberg(list(others.values())).tolist(), strict=True))
    return {key: corrected.get(key, p) for key, p in p_values.items()}


def verdict(estimates: Mapping[Endpoint, Estimate], a: str, b: str, primary: Endpoint | None = None) -> str:
    """Verdict in words on the paired differences A - B.

    For example ``sdpo is better at 1, 2, 4 steps; no significant difference at 50 steps``. "Better" needs a p value of
    :func:`endpoint_p_values` below ``1 - level``. Where only the interval excludes 0, the sentence has the interval and
    the corrected p.

    Args:
        estimates: crossed intervals of ``paired(a, b)`` at one level, by endpoint.
        primary: the endpoint declared beforehand; None: all are exploratory.

    Raises:
        UsageError: no estimates, or estimates of different levels.
    """
    if len({estimate.level for estimate in estimates.values()}) != 1:
        raise UsageError("a verdict needs at least one estimate, all at the same level")
    adjusted = endpoint_p_values(estimates, primary)
    groups: dict[str, list[Endpoint]] = {
        f"{a} is better": [],
        f"{b} is better": [],
        NOT_SHOWN: [],
        INTERVAL_ONLY: [],
        f"{ONE_SEED}, so no verdict": [],
    }
    for key in _in_order(estimates):
        groups[_finding(estimates[key], adjusted.get(key), a, b)].append(key)
    open_ones = [_with_numbers(key, estimates[key], adjusted[key]) for key in groups.pop(INTERVAL_ONLY)]
    texts = [f"{finding} {_where(keys)}" for finding, keys in groups.items() if keys]
    if open_ones:
        family = len(adjusted.keys() - {primary})
        texts.append(f"{INTERVAL_ONLY.format(family)} {', '.join(open_ones)}")
    return "; ".join(texts)


NOT_SHOWN = "no significant difference"
INTERVAL_ONLY = "not significant after correction for {} endpoints, though the interval excludes 0,"


def _finding(estimate: Estimate, adjusted_p: float | None, a: str, b: str) -> str:
    if adjusted_p is None:
        return f"{ONE_SEED}, so no verdict"
    if not estimate.excludes_zero:
        return NOT_SHOWN
    if adjusted_p > 1 - estimate.level:
        return INTERVAL_ONLY
    return f"{a if estimate.value > 0 else b} is better"


def _with_numbers(key: Endpoint, estimate: Estimate, adjusted_p: float) -> str:
    """For example ``at 1 step (-0.05 [-0.1, -0.001], p = 0.07)``."""
    numbers = f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}], p = {adjusted_p:.2g}"
    return f"{_where([key])} ({numbers})"


def _in_order(endpoints: Mapping[Endpoint, Estimate]) -> list[Endpoint]:
    """Step counts ascending, then the summaries."""
    steps = sorted(key for key in endpoints if not isinstance(key, str))
    return [*steps, *(key for key in ENDPOINT_WORDS if key in endpoints)]


def _where(endpoints: list[Endpoint]) -> str:
    steps = [str(key) for key in endpoints if not isinstance(key, str)]
    parts = [f"at {', '.join(steps)} step{'s' * (steps != ['1'])}"] if steps else []
    return " and ".join(parts + [ENDPOINT_WORDS[key] for key in endpoints if isinstance(key, str)])
