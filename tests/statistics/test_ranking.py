"""Corrections and verdicts claim no more than the data show."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.intervals import Estimate, crossed_interval
from sdpo_bench.statistics.matrices import Matrix, paired
from sdpo_bench.statistics.ranking import (
    benjamini_hochberg,
    endpoint_p_values,
    holm,
    verdict,
)


def make_matrix(values, name="a"):
    values = np.asarray(values, dtype=float)
    return Matrix(values, range(values.shape[0]), [f"prompt {p}" for p in range(values.shape[1])], name=name)


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


def estimate(value, error=1.0, df=10.0):
    half = scipy_stats.t.ppf(0.975, df) * error
    return Estimate(value, value - half, value + half, 0.95, 5, 45, error, df, "seeds and prompts")


def test_verdict_in_words():
    found = verdict({50: estimate(0.5), 4: estimate(9), 1: estimate(9), 2: estimate(9)}, "sdpo", "ddpo")
    assert found == "sdpo is better at 1, 2, 4 steps; no significant difference at 50 steps"
    estimates = {1: estimate(-9), 8: estimate(9), "area": estimate(0), "mean": estimate(9)}
    found = verdict(estimates, "sdpo", "ddpo")
    assert found == (
        "sdpo is better at 8 steps and on the mean over step counts; ddpo is better at 1 step; "
        "no significant difference on the area under the step curve"
    )


def test_verdict_corrects_for_looking_at_many_step_counts():
    # 2.4 standard errors at 10 df: p = .037 alone, .149 as the smallest of four
    assert verdict({1: estimate(2.4)}, "sdpo", "ddpo") == "sdpo is better at 1 step"
    found = verdict({1: estimate(2.4), 2: estimate(0), 4: estimate(0), 8: estimate(0)}, "sdpo", "ddpo")
    assert found == (
        "no significant difference at 2, 4, 8 steps; not significant after correction for 4 endpoints, though "
        "the interval excludes 0, at 1 step (2.4 [0.172, 4.63], p = 0.15)"
    )


def test_verdict_leaves_the_primary_endpoint_out_of_the_exploratory_family():
    # 2.4 standard errors at 10 df: p = .0373 alone; as the smaller of the two others 2 * .0373.
    estimates = {1: estimate(2.4), 2: estimate(0), "mean": estimate(2.4)}
    assert endpoint_p_values(estimates, "mean") == pytest.approx({1: 0.0746, 2: 1, "mean": 0.0373}, abs=1e-4)
    assert verdict(estimates, "sdpo", "ddpo", "mean") == (
        "sdpo is better on the mean over step counts; no significant difference at 2 steps; not significant after "
        "correction for 2 endpoints, though the interval excludes 0, at 1 step (2.4 [0.172, 4.63], p = 0.075)"
    )


def test_verdict_controls_the_share_of_false_findings_and_ignores_units():
    # 10 df: p = .0113, .0153, .0256 and 1. Benjamini-Hochberg: least of .0256 * 4/3, .0153 * 4/2 and .0113 * 4 gives
    # .031, .031, .034, so all three stand. Holm's would be .045, .046 and .051, which leaves the third out.
    sizes = {1: 3.1, 2: 2.92, 4: 2.62, 8: 0}
    for unit in (1, 1e-6):
        estimates = {key: estimate(value * unit, unit) for key, value in sizes.items()}
        found = verdict(estimates, "sdpo", "ddpo")
        assert found == "sdpo is better at 1, 2, 4 steps; no significant difference at 8 steps"


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
