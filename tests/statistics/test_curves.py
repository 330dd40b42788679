"""Numbers of learning curves, against values worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from sdpo_bench.statistics.curves import (
    Reach,
    SeedCurve,
    final_rise,
    first_reach,
    mean_curve,
    mean_height,
    mean_rise,
    over_seeds,
    reach,
    rise_when,
    shared_end,
    trace,
)

X = np.array([0.0, 100.0, 200.0, 300.0])


def curve(seed, rise, x=X):
    return SeedCurve(
        seed, {"images": np.asarray(x, float), "seconds": np.asarray(x, float) / 10}, np.asarray(rise, float)
    )


@pytest.mark.parametrize(
    ("height", "expected"),
    [
        (0.0, 0.0),
        (0.1, 25.0),
        (0.4, 100.0),
        (0.5, 250.0),  # half of the way from 0.2 to 0.8, after the curve fell again
        (0.8, 300.0),
        (0.81, None),
    ],
)
def test_a_level_is_reached_at_the_first_crossing(height, expected):
    found = first_reach(X, np.array([0.0, 0.4, 0.2, 0.8]), height)
    assert found == (None if expected is None else pytest.approx(expected))


def test_the_mean_rise_is_the_area_divided_by_the_budget():
    """Trapezia of 20, 30 and 50 over 300; up to 150 one of 20 and one from 0.4 to 0.3 of 17.5."""
    y = np.array([0.0, 0.4, 0.2, 0.8])
    assert mean_height(X, y, 300.0) == pytest.approx((20 + 30 + 50) / 300)
    assert mean_height(X, y, 150.0) == pytest.approx((20 + 17.5) / 150)


def test_a_method_that_rises_early_has_more_area_than_one_that_rises_late():
    early, late = curve(0, [0, 0.8, 0.8, 0.8]), curve(0, [0, 0, 0, 0.8])
    areas = [mean_rise([one], "images", 300.0, 0.95).value for one in (early, late)]
    assert areas == pytest.approx([(40 + 80 + 80) / 300, 40 / 300])
    assert final_rise([early], 0.95).value == final_rise([late], 0.95).value


def test_intervals_are_student_t_over_the_seeds():
    values = [100.0, 140.0, 90.0]
    estimate = over_seeds([0, 1, 2], values, 0.95)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((110.0, low, high))
    assert over_seeds([0], [1.0], 0.95).low is None


def test_the_amount_to_a_level_is_averaged_over_the_seeds_own_crossings():
    """50 and 150 on the seeds' curves; the mean curve would cross 0.2 at 100 by chance."""
    curves = [curve(0, [0, 0.4, 0.4, 0.4]), curve(1, [0, 0.0, 0.4, 0.4])]
    timed = reach(curves, "images", 0.2, 0.95)
    assert timed.amounts == {0: pytest.approx(50.0), 1: pytest.approx(150.0)}
    assert timed.estimate.value == pytest.approx(100.0) and timed.estimate.low == 0.0, "an amount is never negative"
    assert reach(curves, "seconds", 0.2, 0.95).estimate.value == pytest.approx(10.0)


def test_a_seed_that_never_gets_there_is_not_averaged_away():
    timed = reach([curve(0, [0, 0.4, 0.4, 0.4]), curve(1, [0, 0, 0.1, 0.1])], "images", 0.2, 0.95)
    assert timed.reached == 1 and timed.amounts[1] is None
    assert timed.estimate is None
    assert timed.at_least == pytest.approx((50 + 300) / 2)
    assert Reach({0: None}, {0: 300.0}, 0.95).reached == 0


def test_curves_of_unequal_length_are_compared_up_to_the_shorter_end():
    curves = [curve(0, [0, 1, 1, 1]), curve(1, [0, 1, 1, 1], X * 0.5)]
    assert shared_end(curves, "images") == 150.0
    assert mean_rise(curves, "images", 150.0, 0.95).value == pytest.approx((100 / 150 + 125 / 150) / 2)


def test_the_mean_curve_has_a_band_over_seeds_and_one_seed_has_none():
    curves = [curve(0, [0, 0.2, 0.4, 0.6]), curve(1, [0, 0.4, 0.4, 0.8])]
    line = mean_curve("sdpo", curves, "images", 0.95)
    assert line.x == X.tolist() and line.y == pytest.approx([0, 0.3, 0.4, 0.7])
    half = stats.t.ppf(0.975, 1) * stats.sem([0.6, 0.8])
    assert (line.low[3], line.high[3]) == pytest.approx((0.7 - half, 0.7 + half))
    alone = mean_curve("sdpo", curves[:1], "images", 0.95)
    assert alone.low == [] and alone.y == [0, 0.2, 0.4, 0.6]


def test_another_curve_is_read_where_the_first_one_crosses():
    """0.3 lies three quarters of the way between the first two points; the other curve is at 0.15 there, not at 0.1."""
    own, other = curve(0, [0, 0.4, 0.2, 0.8]), curve(0, [0, 0.2, 0.1, -0.4])
    assert rise_when(own, other, 0.3) == pytest.approx(0.15)
    assert rise_when(own, other, 0.6) == pytest.approx(0.1 - 0.5 * 2 / 3), "two thirds of the last stretch"
    assert rise_when(own, other, 0.0) == 0.0
    assert rise_when(own, other, 0.81) is None


def test_a_line_against_another_curve_ends_where_the_lowest_seed_does():
    """Seed 0 is straight (other = own); seed 1 has twice its other at each height and rises to 0.4 alone."""
    seeds = [
        (curve(0, [0, 0.2, 0.4, 0.8]), curve(0, [0, 0.2, 0.4, 0.8])),
        (curve(1, [0, 0.2, 0.4, 0.3]), curve(1, [0, 0.4, 0.8, 9.0])),
    ]
    line = trace("sdpo", seeds, 0.95)
    assert (line.x[0], line.x[-1]) == (0.0, 0.4)
    assert line.y == pytest.approx([1.5 * x for x in line.x])
    half = stats.t.ppf(0.975, 1) * stats.sem([0.4, 0.8])
    assert (line.low[-1], line.high[-1]) == pytest.approx((0.6 - half, 0.6 + half))
    assert trace("sdpo", seeds[:1], 0.95).low == []
