"""Tests, corrections, ranks and verdicts claim no more than the data show."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.statistics.matrices import Matrix, paired
from sdpo_bench.statistics.ranking import (
    benjamini_hochberg,
    holm,
    paired_test,
    paired_tests,
    rank_with_ties,
    verdict,
)


def make_matrix(values, name="a"):
    values = np.asarray(values, dtype=float)
    return Matrix(values, range(values.shape[0]), [f"prompt {p}" for p in range(values.shape[1])], name=name)


def with_seed_means(*means):
    """Two prompts, one above and one below the seed mean."""
    return make_matrix(np.array(means)[:, None] + [-1.0, 1.0])


@pytest.mark.parametrize(("n_seeds", "smallest"), [(6, 2 / 64), (8, 2 / 256), (13, 2 / 8192)])
def test_sign_flips_are_exact_and_reach_the_smallest_p(n_seeds, smallest):
    # All seed means positive: only the observed pattern and its mirror are as extreme, p = 2 / 2^S
    found = paired_test(with_seed_means(*range(1, n_seeds + 1)))
    assert (found.p, found.smallest_p, found.name) == (smallest, smallest, "exact sign-flip test")


def test_sign_flip_p_by_counting():
    # Means -1, 2, 3, 4, 5, 6 sum to 19. Sums >= 19 among the 64 patterns need flipped values of total <= 1:
    # none flipped (21) or only the 1 flipped (19): 2 patterns, two-sided 4/64.
    found = paired_test(with_seed_means(-1, 2, 3, 4, 5, 6))
    assert found.p == pytest.approx(4 / 64)


def test_below_six_seeds_the_t_test_is_used():
    means = [0.3, 0.1, 0.4, 0.2, 0.5]
    found = paired_test(with_seed_means(*means))
    assert found.name == "paired t test"
    assert found.p == pytest.approx(scipy_stats.ttest_1samp(means, 0).pvalue)
    assert found.smallest_p == 0
    assert paired_test(with_seed_means(*means, 0.6)).name == "exact sign-flip test"


def test_many_seeds_draw_patterns_reproducibly():
    means = np.random.default_rng(0).normal(0.3, size=15)
    assert paired_test(with_seed_means(*means)) == paired_test(with_seed_means(*means))
    found = paired_test(with_seed_means(*range(1, 16)))
    assert found.name == "random sign-flip test"
    assert found.smallest_p == 2 / 10000  # (0 + 1) / (9999 + 1), doubled
    assert found.p >= found.smallest_p
    # 2^14 = 16,384 patterns are more than the 9,999 drawn: the first number of seeds that is not enumerated.
    fourteen = paired_test(with_seed_means(*range(1, 15)))
    assert (fourteen.name, fourteen.smallest_p) == ("random sign-flip test", 2 / 10000)


def test_one_seed_is_no_test_and_no_difference_is_p_one():
    found = paired_test(with_seed_means(1.0))
    assert (found.p, found.smallest_p, found.name) == (None, None, "no test (1 seed, no interval)")
    assert paired_test(with_seed_means(0, 0, 0)).p == 1.0
    assert paired_test(with_seed_means(0, 0, 0, 0, 0, 0)).p == 1.0


def test_holm_by_hand():
    # sorted .01, .02, .03, .5 times 4, 3, 2, 1 = .04, .06, .06, .5; running maximum .04, .06, .06, .5
    assert holm([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.06, 0.5, 0.04, 0.06])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    # .01 * 2 = .02, then .015 * 1 is lifted to .02
    assert holm([0.01, 0.015]) == pytest.approx([0.02, 0.02])
    assert holm([]).tolist() == []


def test_benjamini_hochberg_by_hand():
    # sorted .01, .02, .03, .5 times 4/1, 4/2, 4/3, 4/4 = .04, .04, .04, .5
    assert benjamini_hochberg([0.03, 0.5, 0.01, 0.02]) == pytest.approx([0.04, 0.5, 0.04, 0.04])
    assert benjamini_hochberg([]).tolist() == []


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
@pytest.mark.parametrize("bad", [[0.1, float("nan")], [-0.1], [1.1], [[0.1]]])
def test_adjustments_refuse_what_is_no_p_value(adjust, bad):
    with pytest.raises(UsageError, match="numbers in"):
        adjust(bad)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_is_monotone_bounded_and_blind_to_order(p, random):
    found = holm(p)
    order = np.argsort(p, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert (found >= np.array(p)).all()
    assert (found <= np.minimum(1, np.array(p) * len(p))).all()
    assert (found >= benjamini_hochberg(p) - 1e-15).all()
    shuffled = list(range(len(p)))
    random.shuffle(shuffled)
    assert holm([p[i] for i in shuffled]).tolist() == found[shuffled].tolist()


def methods(seed, offsets, n_seeds=5, n_prompts=20, noise=0.3):
    """Methods that share prompt effects and differ by their offsets."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n_seeds, n_prompts))
    return {
        name: make_matrix(shared + offset + noise * rng.normal(size=shared.shape), name)
        for name, offset in offsets.items()
    }


def test_clear_differences_rank_apart_and_ties_share_a_rank():
    found = rank_with_ties(methods(0, {"low": 0, "best": 5.02, "also best": 5.0, "middle": 3}))
    assert list(found.items()) == [("also best", 1), ("best", 1), ("middle", 3), ("low", 4)]


@pytest.mark.parametrize("seed", range(20))
def test_the_top_group_is_where_holms_interval_against_the_best_includes_zero(seed):
    """At Holm's stopping level, alpha / (comparisons - rejected ones), the interval agrees with Holm's adjusted p."""
    given_methods = methods(seed, dict(zip("abcdef", np.random.default_rng(seed).normal(size=6) * 0.15)))
    found = rank_with_ties(given_methods)
    best = max(given_methods, key=lambda name: given_methods[name].values.mean())
    behind = [name for name, rank in found.items() if rank > 1]
    level = 1 - 0.05 / max(1, 5 - len(behind))
    for name in set(given_methods) - {best}:
        interval = crossed_interval(paired(given_methods[name], given_methods[best]), level)
        assert interval.excludes_zero == (name in behind)


def test_holm_keeps_a_method_that_one_unadjusted_interval_would_leave_out():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(5, 30))
    noise -= noise.mean()
    spread = crossed_interval(make_matrix(noise))
    # The best lies 1.3 half-widths above four equal methods: shown alone, not within a family of four.
    best = make_matrix(np.full((5, 30), 1.3 * spread.high), "best")
    assert rank_with_ties({"best": best, "m0": make_matrix(noise)}) == {"best": 1, "m0": 2}
    family = rank_with_ties({"best": best, **{f"m{i}": make_matrix(noise, f"m{i}") for i in range(4)}})
    assert set(family.values()) == {1}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-50, 50))
def test_ranks_ignore_units(seed, scale, shift):
    offsets = dict(zip("abcde", np.random.default_rng(seed).normal(size=5)))
    plain = methods(seed, offsets)
    moved = {name: make_matrix(m.values * scale + shift, name) for name, m in plain.items()}
    expected = list(rank_with_ties(plain).items())
    assert list(rank_with_ties(moved).items()) == expected
    backwards = dict(reversed(plain.items()))
    assert list(rank_with_ties(backwards).items()) == expected


def test_equal_methods_are_ordered_by_name_and_one_seed_ranks_nothing():
    same = {name: make_matrix(np.ones((3, 2)), name) for name in ("c", "a", "b")}
    assert list(rank_with_ties(same).items()) == [("a", 1), ("b", 1), ("c", 1)]
    single = rank_with_ties(methods(0, {"a": 0, "b": 100}, n_seeds=1))
    assert list(single.items()) == [("b", 1), ("a", 1)]
    assert rank_with_ties({"only": make_matrix(np.ones((3, 2)))}) == {"only": 1}


def estimate(value, error=1.0, df=10.0):
    half = scipy_stats.t.ppf(0.975, df) * error
    return Estimate(value, value - half, value + half, 0.95, 5, 45, error, df, "seeds and prompts")


def test_verdict_in_words():
    found = verdict({50: estimate(0.5), 4: estimate(9), 1: estimate(9), 2: estimate(9)}, "sdpo", "ddpo")
    assert found == "sdpo is better at 1, 2, 4 steps; no difference shown at 50 steps"
    estimates = {1: estimate(-9), 8: estimate(9), "area": estimate(0), "mean": estimate(9)}
    found = verdict(estimates, "sdpo", "ddpo")
    assert found == (
        "sdpo is better at 8 steps and on the mean over step counts; ddpo is better at 1 step; "
        "no difference shown on the area under the step curve"
    )


def test_verdict_corrects_for_looking_at_many_step_counts():
    # 2.4 standard errors at 10 df: p = .037 alone, .149 as the smallest of four
    assert verdict({1: estimate(2.4)}, "sdpo", "ddpo") == "sdpo is better at 1 step"
    found = verdict({1: estimate(2.4), 2: estimate(0), 4: estimate(0), 8: estimate(0)}, "sdpo", "ddpo")
    assert found == (
        "no difference shown at 2, 4, 8 steps; unclear at 1 step (the interval excludes 0, but "
        "not after correction for 4 endpoints)"
    )


def test_verdict_controls_the_share_of_false_findings_and_ignores_units():
    # 10 df: p = .0113, .0153, .0256 and 1. Benjamini-Hochberg: least of .0256 * 4/3, .0153 * 4/2 and .0113 * 4 gives
    # .031, .031, .034, so all three stand. Holm's would be .045, .046 and .051, which leaves the third out.
    sizes = {1: 3.1, 2: 2.92, 4: 2.62, 8: 0}
    for unit in (1, 1e-6):
        estimates = {key: estimate(value * unit, unit) for key, value in sizes.items()}
        found = verdict(estimates, "sdpo", "ddpo")
        assert found == "sdpo is better at 1, 2, 4 steps; no difference shown at 8 steps"


def test_verdict_of_one_seed_is_no_verdict():
    a, b = (make_matrix(np.ones((1, 3)) * x, name) for x, name in ((5, "sdpo"), (1, "ddpo")))
    one = crossed_interval(paired(a, b))
    assert verdict({1: one, 4: one}, "sdpo", "ddpo") == "1 seed, no interval, so no verdict at 1, 4 steps"


def test_verdict_needs_estimates_of_one_level():
    with pytest.raises(UsageError, match="same level"):
        verdict({}, "sdpo", "ddpo")
    other = crossed_interval(make_matrix(np.eye(3)), 0.9)
    with pytest.raises(UsageError, match="same level"):
        verdict({1: estimate(1), 2: other}, "sdpo", "ddpo")


def test_tests_of_several_differences_are_those_of_each():
    rng = np.random.default_rng(0)
    differences = [with_seed_means(*rng.normal(0.3, 1, n)) for n in (7, 1, 15, 3, 7, 15, 15)]
    assert paired_tests(differences) == [paired_test(difference) for difference in differences]
    assert paired_tests([]) == []
