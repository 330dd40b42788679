"""Tests, corrections for many comparisons, ranks with ties, and the verdict in words.

A table invites its reader to pick the largest number. This module says which of the methods below it the data
cannot tell from it, and corrects for having looked at many methods or many step counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats as scipy_stats

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.intervals import ONE_SEED, Estimate, check_level, crossed_p_values, seed_interval
from sdpo_bench.statistics.matrices import Endpoint, Matrix, paired

SIGN_FLIP_FROM = 6
"""With fewer seeds a two-sided sign-flip test cannot fall below .05 (2 / 2**5 = .0625)."""
RESAMPLES = 9999
"""Sign patterns drawn at most; up to 13 seeds all 2**S are enumerated and p is exact."""
ENDPOINT_WORDS: dict[Literal["few", "mean", "area"], str] = {
    "few": "on the few-step mean (1, 2 and 4 steps)",
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


def paired_test(difference: Matrix) -> PairedTest:
    """Sign-flip permutation test of the seed means from 6 seeds on, the paired t test below.

    Prompts are taken as they are ("on this prompt set"); the crossed interval is the wider statement. Beyond 13 seeds
    the sign patterns are drawn, always the same ones.

    Args:
        difference: ``paired(a, b)``.
    """
    return paired_tests([difference])[0]


def paired_tests(differences: Sequence[Matrix]) -> list[PairedTest]:
    """:func:`paired_test` of each; those with equally many seeds share the sign patterns, which take longest."""
    tests: list[PairedTest | None] = [None] * len(differences)
    by_seeds: dict[int, list[int]] = {}
    for i, difference in enumerate(differences):
        n_seeds = len(difference.seeds)
        if n_seeds == 1:
            tests[i] = PairedTest(None, f"no test ({ONE_SEED})", None, 1)
        elif n_seeds < SIGN_FLIP_FROM:
            tests[i] = PairedTest(seed_interval(difference).p_value(), "paired t test", 0.0, n_seeds)
        else:
            by_seeds.setdefault(n_seeds, []).append(i)
    for n_seeds, places in by_seeds.items():
        p_values = _sign_flip_p(np.stack([differences[i].seed_means for i in places]))
        exact = 2**n_seeds <= RESAMPLES
        smallest = 2 / 2**n_seeds if exact else 2 / (RESAMPLES + 1)
        name = f"{'exact' if exact else 'random'} sign-flip test"
        for i, p in zip(places, p_values):
            tests[i] = PairedTest(float(p), name, smallest, n_seeds)
    return [test for test in tests if test is not None]


def _sign_flip_p(means: np.ndarray) -> np.ndarray:
    """p values ``[n]`` of seed means ``[n, S]``."""
    result = scipy_stats.permutation_test(
        (means,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=1000,  # patterns at a time, which bounds memory
        axis=1,
        rng=np.random.default_rng(0),
    )
    return np.asarray(result.pvalue)


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


def rank_with_ties(matrices: Mapping[str, Matrix], *, level: float = 0.95) -> dict[str, int]:
    """Ranks from paired comparisons, best first, ties shown: 1 for the whole top group, and so on.

    The method with the highest mean leads, and a method whose Holm-adjusted paired crossed interval against
    the leader includes 0 stands with it. Those left over are ranked in the same way among themselves; the first of
    them has 1 + the number of methods before it. Equal means are ordered by name. With one seed no difference can be
    shown and all methods tie.

    "Not told apart" is not transitive: members of a group may differ from each other. And the leader is
    chosen by the same data: with many equal methods the chance that some method is wrongly left out exceeds
    ``1 - level`` (``docs/statistics.md`` has numbers).

    Raises:
        UsageError: matrices that cannot be paired.
    """
    check_level(level)
    names = sorted(matrices, key=lambda name: (-matrices[name].values.mean(), name))
    ranks: dict[str, int] = {}
    while left := [name for name in names if name not in ranks]:
        leader, *others = left
        differences = [paired(matrices[name], matrices[leader]) for name in others]
        adjusted = holm(crossed_p_values(differences))
        behind = {name for name, p in zip(others, adjusted) if p < 1 - level}
        ranks |= dict.fromkeys((name for name in left if name not in behind), len(ranks) + 1)
    return ranks


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
