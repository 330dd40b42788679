"""Tests, corrections for many comparisons, ranks with ties, and the verdict in words.

A table invites its reader to pick the largest number. This module says which of the methods below it the data
cannot tell from it, and corrects for having looked at many methods or many step counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.intervals import ONE_SEED, Estimate, check_level, crossed_interval, seed_interval
from sdpo_bench.statistics.matrices import Endpoint, Matrix, paired

SIGN_FLIP_FROM = 6
"""With fewer seeds a two-sided sign-flip test cannot fall below .05 (2 / 2**5 = .0625)."""
RESAMPLES = 9999
"""Sign patterns drawn at most; up to 13 seeds all 2**S are enumerated and p is exact."""
ENDPOINT_WORDS: dict[Literal["mean", "area"], str] = {
    "mean": "on the mean over step counts",
    "area": "on the area under the step curve",
}


@dataclass(frozen=True)
class PairedTest:
    """Outcome of a two-sided test that the mean paired difference is 0, over training seeds."""

    p: float | None
    """None with one seed."""
    name: str
    smallest_p: float | None
    """The smallest p that this test can give with so many seeds (0 for a t test)."""
    n_seeds: int


def paired_test(difference: Matrix, *, seed: int = 0) -> PairedTest:
    """Sign-flip permutation test of the seed means from 6 seeds on, the paired t test below.

    Prompts are taken as they are ("on this prompt set"); the crossed interval is the wider statement.

    Args:
        difference: ``paired(a, b)``.
        seed: of the drawn sign patterns, used beyond 13 seeds only.
    """
    means = difference.seed_means
    n_seeds = len(means)
    if n_seeds == 1:
        return PairedTest(None, f"no test ({ONE_SEED})", None, 1)
    if n_seeds < SIGN_FLIP_FROM:
        return PairedTest(seed_interval(difference).p_value(), "paired t test", 0.0, n_seeds)
    result = scipy_stats.permutation_test(
        (means,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    exact = 2**n_seeds <= RESAMPLES
    smallest = 2 / 2**n_seeds if exact else 2 / (RESAMPLES + 1)
    name = f"{'exact' if exact else 'random'} sign-flip test"
    return PairedTest(float(result.pvalue), name, smallest, n_seeds)


def _p_values(p: object) -> np.ndarray:
    values = np.asarray(p, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise UsageError(f"p values form a list of numbers in [0, 1], got {p}")
    return values


def holm(p: object) -> np.ndarray:
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


def benjamini_hochberg(p: object) -> np.ndarray:
    """Adjusted p values ``[n]`` that control the false discovery rate, for exploratory grids.

    Raises:
        UsageError: values outside [0, 1] or NaN.
    """
    values = _p_values(p)
    return np.asarray(scipy_stats.false_discovery_control(values)) if len(values) else values


@dataclass(frozen=True)
class Comparison:
    """One method against the reference at the primary endpoint."""

    method: str
    difference: Estimate
    """Method minus reference, crossed interval at the unadjusted level."""
    test: PairedTest
    adjusted_p: float | None
    """Holm's, over all methods compared; None with one seed."""
    note: str = ""


def against_reference(
    matrices: Mapping[str, Matrix], reference: str, *, level: float = 0.95, seed: int = 0
) -> tuple[Comparison, ...]:
    """The declared family: each method against the reference, tests adjusted by Holm. Sorted by method.

    Raises:
        UsageError: an unknown reference, no other method, or matrices that cannot be paired.
    """
    others = sorted(name for name in matrices if name != reference)
    if reference not in matrices or not others:
        raise UsageError(f"reference '{reference}' is not there or alone; given: {', '.join(matrices)}")
    differences = [paired(matrices[name], matrices[reference]) for name in others]
    tests = [paired_test(difference, seed=seed) for difference in differences]
    adjusted = _holm_where_tested([test.p for test in tests])
    return tuple(
        Comparison(name, crossed_interval(difference, level), test, p, _reach(test, len(others), 1 - level))
        for name, difference, test, p in zip(others, differences, tests, adjusted)
    )


def _holm_where_tested(p: list[float | None]) -> list[float | None]:
    """Holm over the whole family; a comparison without a test counts with p = 1."""
    adjusted = holm([1.0 if value is None else value for value in p])
    return [None if value is None else float(new) for value, new in zip(p, adjusted)]


def _reach(test: PairedTest, family: int, alpha: float) -> str:
    """A permutation test on few seeds can be unable to pass Holm's first step whatever the data."""
    if test.smallest_p is None:
        return ONE_SEED
    if test.smallest_p * family <= alpha:
        return ""
    return (
        f"{test.n_seeds} seeds cannot show a difference in a family of {family}: the smallest adjusted p "
        f"is {test.smallest_p * family:.3g}"
    )


@dataclass(frozen=True)
class Standing:
    """A method's place in a table."""

    method: str
    value: float
    """Mean over seeds and prompts."""
    rank: int
    """1 for the whole top group; the next group starts at 1 + the number of methods before it."""
    against_best: Estimate | None
    """Method minus the best one, crossed interval at the Holm-adjusted level; None for the best itself."""
    adjusted_p: float | None
    """Holm's, of that comparison; None for the best one, and with one seed."""

    @property
    def top(self) -> bool:
        """Whether no difference to the best method is shown."""
        return self.rank == 1


def rank_with_ties(matrices: Mapping[str, Matrix], *, level: float = 0.95) -> tuple[Standing, ...]:
    """Ranks from paired comparisons, best first, ties shown.

    The method with the highest mean leads, and a method whose Holm-adjusted paired crossed interval against
    the leader includes 0 stands with it. Those left over are ranked in the same way among themselves. Equal
    means are ordered by name. With one seed no difference can be shown and all methods tie.

    "Not told apart" is not transitive: members of a group may differ from each other. And the leader is
    chosen by the same data: with many equal methods the chance that some method is wrongly left out exceeds
    ``1 - level`` (``docs/statistics.md`` has numbers).

    Raises:
        UsageError: no methods, or matrices that cannot be paired.
    """
    check_level(level)
    if not matrices:
        raise UsageError("no methods to rank")
    names = sorted(matrices, key=lambda name: (-matrices[name].values.mean(), name))
    against_best = _against_leader(matrices, names, level)
    ranks: dict[str, int] = {}
    while left := [name for name in names if name not in ranks]:
        rank, rivals = len(ranks) + 1, _against_leader(matrices, left, level)
        ranks |= {name: rank for name in left if name not in rivals or not rivals[name][0].excludes_zero}
    return tuple(
        Standing(name, float(matrices[name].values.mean()), ranks[name], *against_best.get(name, (None, None)))
        for name in sorted(names, key=lambda name: ranks[name])
    )  # stable: by mean within a rank


def _against_leader(
    matrices: Mapping[str, Matrix], names: list[str], level: float
) -> dict[str, tuple[Estimate, float | None]]:
    """Interval (method minus ``names[0]``) and Holm-adjusted p of all but the first name.

    Holm stops at the first p above ``alpha / (m - k)``, k being the number of hypotheses rejected before. An
    interval at that one level excludes 0 for exactly the rejected ones.
    """
    leader, *others = names
    differences = [paired(matrices[name], matrices[leader]) for name in others]
    adjusted = _holm_where_tested([crossed_interval(difference).p_value() for difference in differences])
    rejected = sum(p is not None and p < 1 - level for p in adjusted)
    family = max(1, len(others) - rejected)
    return {
        name: (crossed_interval(difference, 1 - (1 - level) / family), p)
        for name, difference, p in zip(others, differences, adjusted)
    }


def verdict(estimates: Mapping[Endpoint, Estimate], a: str, b: str) -> str:
    """Verdict in words on the paired differences A - B.

    For example ``sdpo is better at 1, 2, 4 steps; no difference shown at 50 steps``. Several endpoints are an
    exploratory grid: "better" needs an interval that excludes 0 and a p value that stays below ``1 - level``
    after Benjamini-Hochberg's correction over the endpoints given; where only the first holds, "unclear".

    Args:
        estimates: crossed intervals of ``paired(a, b)`` at one level, by endpoint.

    Raises:
        UsageError: no estimates, or estimates of different levels.
    """
    if len({estimate.level for estimate in estimates.values()}) != 1:
        raise UsageError("a verdict needs at least one estimate, all at the same level")
    p_values = {key: p for key, estimate in estimates.items() if (p := estimate.p_value()) is not None}
    adjusted = dict(zip(p_values, benjamini_hochberg(list(p_values.values()))))
    groups: dict[str, list[Endpoint]] = {
        f"{a} is better": [],
        f"{b} is better": [],
        "no difference shown": [],
        "unclear": [],
        f"{ONE_SEED}, so no verdict": [],
    }
    for key in _in_order(estimates):
        groups[_finding(estimates[key], adjusted.get(key), a, b)].append(key)
    texts = [f"{finding} {_where(keys)}" for finding, keys in groups.items() if keys]
    after = f" (the interval excludes 0, but not after correction for {len(p_values)} endpoints)"
    return "; ".join(text + after if text.startswith("unclear") else text for text in texts)


def _finding(estimate: Estimate, adjusted_p: float | None, a: str, b: str) -> str:
    if adjusted_p is None:
        return f"{ONE_SEED}, so no verdict"
    if not estimate.excludes_zero:
        return "no difference shown"
    if adjusted_p > 1 - estimate.level:
        return "unclear"
    return f"{a if estimate.value > 0 else b} is better"


def _in_order(endpoints: Mapping[Endpoint, Estimate]) -> list[Endpoint]:
    """Step counts ascending, then the summaries."""
    steps = sorted(key for key in endpoints if not isinstance(key, str))
    return [*steps, *(key for key in ENDPOINT_WORDS if key in endpoints)]


def _where(endpoints: list[Endpoint]) -> str:
    steps = [str(key) for key in endpoints if not isinstance(key, str)]
    parts = [f"at {', '.join(steps)} step{'s' * (steps != ['1'])}"] if steps else []
    return " and ".join(parts + [ENDPOINT_WORDS[key] for key in endpoints if isinstance(key, str)])
