"""Statistics across rewards: standardised, robust, resampled by training seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.aggregates import iqm, iqms, probability_of_improvement, stratified_bootstrap


def test_iqm_cuts_a_quarter_at_each_end_of_all_values():
    # 1 .. 8: without 1, 2 and 7, 8 the mean of 3, 4, 5, 6 is 4.5; outliers at the ends change nothing
    assert iqm([[1, 2, 3, 4], [5, 6, 7, 8]]) == 4.5
    assert iqm([[-1e9, 2, 3, 4], [5, 6, 7, 1e9]]) == 4.5
    assert iqm([1.0, 2.0, 6.0]) == 3.0  # fewer than four values: the mean
    with pytest.raises(UsageError, match="1 NaN or infinite"):
        iqm([1.0, np.nan])


few_scores = st.lists(st.integers(0, 5), min_size=1, max_size=8)


@given(few_scores, few_scores)
def test_probability_of_improvement_is_mann_whitneys_u_over_nm(a, b):
    expected = scipy_stats.mannwhitneyu(a, b).statistic / (len(a) * len(b))
    assert probability_of_improvement(a, b) == pytest.approx(expected)
    assert probability_of_improvement(a, b) + probability_of_improvement(b, a) == pytest.approx(1)


def test_probability_of_improvement_averages_over_rewards():
    # reward 0: 2 > 1, 4 > 1, 2 < 3, 4 > 3 -> 3/4; reward 1: all ties -> 1/2
    assert probability_of_improvement([[2, 0], [4, 0]], [[1, 0], [3, 0]]) == 0.625
    with pytest.raises(UsageError, match="or \\[n, R\\] and \\[m, R\\]"):
        probability_of_improvement([[1, 2]], [[1, 2, 3]])


def means(samples):
    return samples.mean(axis=tuple(range(1, samples.ndim)))


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 99))
def test_the_interquartile_means_of_many_samples_are_those_of_each(seeds, strata, seed):
    samples = np.random.default_rng(seed).normal(size=(5, strata, seeds))
    assert iqms(samples).tolist() == pytest.approx([iqm(sample) for sample in samples], rel=1e-12)


def test_bootstrap_is_a_function_of_its_seed():
    gains = np.random.default_rng(0).normal(size=(2, 12))
    found = stratified_bootstrap(gains, means, seed=1)
    assert found == stratified_bootstrap(gains, means, seed=1)
    assert found.low != stratified_bootstrap(gains, means, seed=2).low
    assert found.low < found.value == gains.mean() < found.high
    assert (found.kind, found.note) == ("bootstrap", "")


def test_bootstrap_matches_the_normal_theory_of_a_mean():
    # 40 seeds, one stratum: the bootstrap error of a mean is sd(ddof=0)/sqrt(n)
    gains = np.random.default_rng(4).normal(size=(1, 40))
    found = stratified_bootstrap(gains, means, seed=0)
    error = gains.std() / np.sqrt(40)
    assert found.standard_error == pytest.approx(error, rel=0.06)
    expected = (gains.mean() - 1.96 * error, gains.mean() + 1.96 * error)
    assert (found.low, found.high) == pytest.approx(expected, abs=0.2 * error)


def test_bootstrap_draws_seeds_within_strata_and_everything_else_jointly():
    gains = np.zeros((2, 3, 2, 4))  # strata, seeds, methods, step counts
    gains += np.arange(2)[:, None, None, None] * 100 + np.arange(3)[None, :, None, None]
    seen = []

    def record(samples):
        seen.append(samples.copy())
        return means(samples)

    stratified_bootstrap(gains, record, seed=0)
    value, draws = seen
    assert (value == gains).all()
    assert len(draws) == 2000
    assert (draws == draws[..., :1, :1]).all()  # one seed for all methods and step counts
    assert (draws[:, 0] < 100).all()
    assert (draws[:, 1] >= 100).all()  # never across strata
    picked = draws[..., 0, 0] % 100
    assert (picked[:, 0] != picked[:, 1]).any()  # strata are drawn apart
    assert [(picked == seed).mean() for seed in range(3)] == pytest.approx([1 / 3] * 3, abs=0.02)


def test_the_bootstraps_error_is_the_standard_deviation_of_its_resamples():
    seen = []

    def record(samples):
        seen.extend(means(samples))
        return means(samples)

    found = stratified_bootstrap(np.arange(12.0)[None], record, seed=0)
    assert len(seen) == 2001, "the data themselves, then the resamples"
    assert found.standard_error == pytest.approx(np.std(seen[1:], ddof=1), rel=1e-12)


def test_bootstrap_is_descriptive_below_ten_seeds_and_absent_with_one():
    gains = np.random.default_rng(0).normal(size=(3, 10))
    found = stratified_bootstrap(gains, seed=0)  # of the interquartile mean, unless told otherwise
    assert (found.value, found.note) == (iqm(gains), "")
    assert stratified_bootstrap(gains[:, :9], means, seed=0).note == "descriptive: 9 seeds, fewer than 10"
    single = stratified_bootstrap(gains[:, :1], seed=0)
    assert (single.low, single.note) == (None, "1 seed, no interval")


def test_bootstrap_refuses_what_it_cannot_do():
    with pytest.raises(UsageError, match="strata, seeds"):
        stratified_bootstrap(np.zeros(5), seed=0)
    with pytest.raises(TypeError):
        stratified_bootstrap(np.zeros((1, 5)))  # the seed must be given
