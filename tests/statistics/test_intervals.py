"""Intervals hold what they promise: hand-computed cases, scipy where it knows the answer, coverage."""

import numpy as np
import pytest
from evaluation_grids import make_grid
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.eval_table import reduced
from sdpo_bench.statistics.intervals import (
    Estimate,
    crossed_interval,
    crossed_moments,
    crossed_p_values,
    effect_size,
    image_standard_error,
    mean_squares,
    seed_interval,
)
from sdpo_bench.statistics.matrices import Matrix, paired


def make_matrix(values, name="a"):
    values = np.asarray(values, dtype=float)
    return Matrix(values, range(values.shape[0]), [f"prompt {p}" for p in range(values.shape[1])], name=name)


def draw(rng, n_seeds, n_prompts, seed_sd=0.3, prompt_sd=1.0, residual_sd=1.0, layouts=()):
    """Layouts [..., S, P] of the crossed model with true mean 0."""
    seeds, prompts = rng.normal(size=(*layouts, n_seeds, 1)), rng.normal(size=(*layouts, 1, n_prompts))
    residual = rng.normal(size=(*layouts, n_seeds, n_prompts))
    return seed_sd * seeds + prompt_sd * prompts + residual_sd * residual


# Three seeds x two prompts. Seed means 1.5, 4.5, 6; prompt means 3, 5; grand mean 4.
# MSs = 2 * ((-2.5)^2 + .5^2 + 2^2) / 2 = 10.5        MSp = 3 * ((-1)^2 + 1^2) / 1 = 6
# residuals +-.5, -+.5, 0, 0: sum of squares 1, MSr = 1 / (2 * 1) = .5
HAND = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 7.0]])


def test_mean_squares_by_hand():
    assert [float(x) for x in mean_squares(HAND)] == pytest.approx([10.5, 6.0, 0.5])


def test_crossed_interval_by_hand():
    # V = (10.5 + 6 - .5) / 6 = 16/6;  df = 16^2 / (10.5^2/2 + 6^2/1 + .5^2/2) = 256 / 91.25
    found = crossed_interval(make_matrix(HAND))
    assert found.value == pytest.approx(4)
    assert found.standard_error == pytest.approx(np.sqrt(16 / 6))
    assert found.df == pytest.approx(256 / 91.25)
    half = scipy_stats.t.ppf(0.975, 256 / 91.25) * np.sqrt(16 / 6)
    assert (found.low, found.high) == pytest.approx((4 - half, 4 + half))
    assert (found.n_seeds, found.n_prompts, found.kind) == (3, 2, "seeds and prompts")


def test_the_variance_never_falls_below_the_residual_share():
    # Rows and columns all sum to 0, so MSs = MSp = 0; MSr = 4 / 1; V = max(-4, 4) / 4 = 1; df = 4^2 / 4^2 = 1
    mean, variance, df = crossed_moments(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert (float(mean), float(variance), float(df)) == (0.0, 1.0, 1.0)


def test_degrees_of_freedom_are_at_least_one():
    # MSs = 2 * 2 = 4 of seed effects +-1, MSp = 4 of prompt effects +-1, MSr = 4 of +-1:
    # V = (4 + 4 - 4)/4 = 1 and df = 4^2 / (3 * 4^2) = 1/3 before the clamp
    values = np.array([[1 + 1 + 1, 1 - 1 - 1], [-1 + 1 - 1, -1 - 1 + 1]], dtype=float)
    assert [float(x) for x in mean_squares(values)] == [4.0, 4.0, 4.0]
    assert float(crossed_moments(values)[2]) == 1.0


def test_seed_interval_is_scipys_paired_t_interval():
    rng = np.random.default_rng(3)
    a, b = make_matrix(rng.normal(size=(5, 7)), "a"), make_matrix(rng.normal(size=(5, 7)), "b")
    expected = scipy_stats.ttest_rel(a.seed_means, b.seed_means)
    for level in (0.8, 0.95):
        found = seed_interval(paired(a, b), level)
        assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(level)), rel=1e-12)
    assert found.p_value() == pytest.approx(expected.pvalue, rel=1e-10)
    assert found.kind == "seeds"


def test_without_a_prompt_effect_the_crossed_interval_is_close_to_the_t_interval():
    m = make_matrix(draw(np.random.default_rng(5), 6, 400, seed_sd=1.0, prompt_sd=0.0, residual_sd=0.5))
    crossed, t = crossed_interval(m), seed_interval(m)
    assert crossed.df == pytest.approx(5, abs=0.02)
    assert (crossed.low, crossed.high) == pytest.approx((t.low, t.high), abs=0.005 * (t.high - t.low))


def test_without_a_seed_effect_the_crossed_interval_is_close_to_a_t_interval_over_prompts():
    m = make_matrix(draw(np.random.default_rng(6), 5, 300, seed_sd=0.0, prompt_sd=1.0, residual_sd=0.05))
    expected = scipy_stats.ttest_1samp(m.values.mean(axis=0), 0).confidence_interval()
    found = crossed_interval(m)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.01 * (expected[1] - expected[0]))


SIMULATED = 3000  # binomial standard error .4 points at 95 %


def covered(values):
    mean, variance, df = crossed_moments(values)
    return float((np.abs(mean) <= scipy_stats.t.ppf(0.975, df) * np.sqrt(variance)).mean())


@pytest.mark.parametrize("n_seeds", [3, 5, 10])
@pytest.mark.parametrize(("seed_sd", "prompt_sd"), [(0.3, 1.0), (0.1, 1.0), (0.3, 0.0), (0.0, 1.0)])
def test_crossed_intervals_cover_as_often_as_they_say(n_seeds, seed_sd, prompt_sd):
    rng = np.random.default_rng(n_seeds)
    assert 0.915 <= covered(draw(rng, n_seeds, 200, seed_sd, prompt_sd, layouts=(SIMULATED,))) <= 0.965


def test_image_and_seed_intervals_cover_too_rarely_for_a_method():
    rng = np.random.default_rng(11)
    values = draw(rng, 5, 200, seed_sd=0.3, prompt_sd=1.0, layouts=(2000,))
    flat = values.reshape(2000, -1)
    half = 1.96 * flat.std(axis=1, ddof=1) / np.sqrt(flat.shape[1])
    assert (np.abs(flat.mean(axis=1)) <= half).mean() < 0.6
    means = values.mean(axis=-1)
    half = scipy_stats.t.ppf(0.975, 4) * means.std(axis=1, ddof=1) / np.sqrt(5)
    assert (np.abs(means.mean(axis=1)) <= half).mean() < 0.945  # ignores that prompts are a sample
    assert covered(values) > 0.92


def test_seed_intervals_cover_the_mean_on_these_prompts():
    rng = np.random.default_rng(12)
    prompts = rng.normal(size=20)
    truth = prompts.mean()
    found = [seed_interval(make_matrix(prompts + draw(rng, 5, 20, prompt_sd=0.0))) for _ in range(2000)]
    assert 0.935 <= np.mean([each.low <= truth <= each.high for each in found]) <= 0.965


layouts = st.tuples(st.integers(2, 6), st.integers(2, 7), st.integers(0, 10**6))
routines = st.sampled_from([crossed_interval, seed_interval])


def numbers(estimate: Estimate):
    return np.array([estimate.value, estimate.low, estimate.high])


@settings(deadline=None, max_examples=50)
@given(layouts, routines, st.floats(-100, 100), st.floats(1e-3, 1e3))
def test_intervals_follow_shift_and_scale(layout, interval, shift, scale):
    n_seeds, n_prompts, seed = layout
    values = draw(np.random.default_rng(seed), n_seeds, n_prompts)
    expected, found = interval(make_matrix(values)), interval(make_matrix(values * scale + shift))
    assert numbers(found) == pytest.approx(numbers(expected) * scale + shift, rel=1e-8, abs=1e-8 * scale)
    assert found.df == pytest.approx(expected.df, rel=1e-6)


@settings(deadline=None, max_examples=50)
@given(layouts, routines)
def test_swapping_the_methods_mirrors_the_interval(layout, interval):
    n_seeds, n_prompts, seed = layout
    rng = np.random.default_rng(seed)
    a, b = (make_matrix(draw(rng, n_seeds, n_prompts), name) for name in "ab")
    forth, back = interval(paired(a, b)), interval(paired(b, a))
    assert numbers(forth) == pytest.approx(-numbers(back)[[0, 2, 1]], rel=1e-9, abs=1e-12)
    assert forth.p_value() == pytest.approx(back.p_value(), rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(layouts, routines)
def test_the_order_of_seeds_and_prompts_does_not_matter(layout, interval):
    n_seeds, n_prompts, seed = layout
    rng = np.random.default_rng(seed)
    values = draw(rng, n_seeds, n_prompts)
    shuffled = values[rng.permutation(n_seeds)][:, rng.permutation(n_prompts)]
    found, expected = interval(make_matrix(shuffled)), interval(make_matrix(values))
    assert numbers(found) == pytest.approx(numbers(expected), abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(layouts, st.floats(0.5, 0.98))
def test_p_and_interval_tell_the_same_story(layout, level):
    n_seeds, n_prompts, seed = layout
    found = crossed_interval(make_matrix(draw(np.random.default_rng(seed), n_seeds, n_prompts) + 0.5), level)
    assert found.excludes_zero == (found.p_value() < 1 - level)
    assert found.p_value(found.high) == pytest.approx(1 - level)
    wider = crossed_interval(make_matrix(draw(np.random.default_rng(seed), n_seeds, n_prompts) + 0.5), 0.99)
    assert wider.low < found.low < found.high < wider.high


def test_very_small_scores_lose_nothing_to_underflow():
    tiny, plain = crossed_interval(make_matrix(HAND * 1e-100)), crossed_interval(make_matrix(HAND))
    assert numbers(tiny) * 1e100 == pytest.approx(numbers(plain))
    assert tiny.df == pytest.approx(plain.df)


@pytest.mark.parametrize("interval", [crossed_interval, seed_interval])
def test_one_seed_gives_the_value_and_no_interval(interval):
    found = interval(make_matrix([[1.0, 2.0, 6.0]]))
    assert (found.value, found.low, found.high, found.p_value()) == (3.0, None, None, None)
    assert found.note == "1 seed, no interval"
    assert not found.excludes_zero
    assert found.words() == "3 (1 seed x 3 prompts); 1 seed, no interval"
    assert found.clipped(0, 1) == found


def test_two_seeds_warn_three_advise_and_five_are_silent():
    rng = np.random.default_rng(0)
    notes = {s: crossed_interval(make_matrix(rng.normal(size=(s, 4)))).note for s in (2, 3, 4, 5, 10)}
    assert notes[2].startswith("warning: 2 seeds")
    assert "5 or more" in notes[2]
    assert notes[3] == "3 seeds; 5 or more are advised"
    assert notes[4] == "4 seeds; 5 or more are advised"
    assert notes[5] == notes[10] == ""


def test_detectable_difference_is_found_four_times_in_five():
    """Simulated: t tests of five seeds whose true mean is the detectable value of a unit standard deviation."""
    estimate = Estimate(0.0, -1.0, 1.0, 0.95, 5, None, 1 / np.sqrt(5), 4.0, "seeds")
    size = estimate.detectable()
    draws = np.random.default_rng(0).normal(size, 1.0, (40_000, 5))
    t = draws.mean(1) / (draws.std(1, ddof=1) / np.sqrt(5))
    power = (np.abs(t) > scipy_stats.t.ppf(0.975, 4)).mean()
    assert power == pytest.approx(0.8, abs=0.01)
    # By hand for many degrees of freedom: (1.95996 + .84162) standard errors.
    many = Estimate(0.0, -1.0, 1.0, 0.95, 5, None, 0.5, 1e6, "seeds")
    assert many.detectable() == pytest.approx(2.80158 * 0.5, rel=1e-4)
    assert Estimate(0.0, None, None, 0.95, 1, None, None, None, "seeds").detectable() is None


def test_words_of_an_interval():
    found = Estimate(0.1234, 0.0312, 0.2156, 0.95, 5, 45, 0.03, 4.2, "seeds and prompts", "mind this")
    assert found.words() == "0.123 [0.0312, 0.216] (95 %, 5 seeds x 45 prompts); mind this"


def test_rounding_error_is_printed_as_zero():
    """.1 + .2 - .3 is 5.6e-17 in float64; a difference of rewards as small as 1e-17 with an interval to match stays."""
    found = Estimate(0.1 + 0.2 - 0.3, -0.0077, 0.0077, 0.95, 3, 45, 0.003, 4.2, "seeds and prompts")
    assert found.words() == "0 [-0.0077, 0.0077] (95 %, 3 seeds x 45 prompts)"
    small = Estimate(1e-17, 0.5e-17, 1.5e-17, 0.95, 3, 45, 1e-18, 4.2, "seeds and prompts")
    assert small.words().startswith("1e-17 [5e-18, 1.5e-17]")


def test_one_prompt_falls_back_to_seeds_and_says_so():
    m = make_matrix([[1.0], [2.0], [3.0], [4.0], [6.0]])
    found, t = crossed_interval(m), seed_interval(m)
    assert numbers(found).tolist() == numbers(t).tolist()
    assert "nothing is said about other prompts" in found.note
    single = crossed_interval(make_matrix([[2.0]]))
    assert (single.value, single.low) == (2.0, None)
    assert single.note.startswith("1 seed, no interval; 1 prompt")


@pytest.mark.parametrize("shape", [(5, 3), (3, 7), (6, 10), (7, 11)])
@pytest.mark.parametrize("interval", [crossed_interval, seed_interval])
def test_constant_values_give_a_zero_width_that_is_pointed_out(interval, shape):
    found = interval(make_matrix(np.full(shape, 0.1)))  # 0.1 is not exact in binary: sums of it round
    assert found.low == found.high == found.value == pytest.approx(0.1)
    assert (found.standard_error, found.p_value()) == (0.0, 0.0)
    assert "no variation" in found.note
    nothing = interval(make_matrix(np.zeros(shape)))
    assert (nothing.low, nothing.high, nothing.p_value()) == (0.0, 0.0, 1.0)
    assert not nothing.excludes_zero


def test_identical_seeds_are_suspicious():
    found = crossed_interval(make_matrix(np.tile([[1.0, 2.0, 4.0]], (5, 1))))
    assert "all seeds have the same mean" in found.note
    assert found.low < found.high


def test_notes_of_a_pairing_reach_the_estimate():
    a = Matrix(np.eye(6), range(6), "uvwxyz", name="a", note="a remark")
    b = Matrix(np.zeros((6, 6)), range(6), "uvwxyz", name="b", note="another")
    assert crossed_interval(paired(a, b)).note.startswith("a remark; another")


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, float("nan")])
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_levels_are_probabilities(level, n_seeds):
    with pytest.raises(UsageError, match="between 0 and 1"):
        crossed_interval(make_matrix(np.zeros((n_seeds, 2))), level)


def test_image_error_is_labelled_as_what_it_is():
    # deviations -1, 0, 1: sd 1, over sqrt(3)
    found = image_standard_error([1.0, 2.0, 3.0])
    assert (found.value, found.standard_error) == pytest.approx((2.0, 3**-0.5))
    assert (found.low, found.high, found.p_value()) == (None, None, None)
    assert "over images, one seed, not a method interval" in found.note
    assert image_standard_error([2.0]).standard_error is None
    for bad in ([], [1.0, np.nan]):
        with pytest.raises(UsageError, match="image scores must be finite"):
            image_standard_error(bad)


def test_effect_size_divides_by_the_base_models_spread():
    difference = crossed_interval(make_matrix(HAND))
    found = effect_size(difference, 2.5)
    assert numbers(found) == pytest.approx(numbers(difference) / 2.5)
    assert found.p_value() == pytest.approx(difference.p_value())


def test_more_images_do_not_make_a_method_more_certain():
    scores = draw(np.random.default_rng(8), 4, 6)[:, :, None, None]
    once = crossed_interval(reduced(make_grid(scores, steps=(1,)), 1))
    many = crossed_interval(reduced(make_grid(np.repeat(scores, 10, axis=3), steps=(1,)), 1))
    assert numbers(many) == pytest.approx(numbers(once))


@pytest.mark.parametrize("shape", [(3, 4), (1, 4), (3, 1)])
def test_p_values_of_many_matrices_are_those_of_each(shape):
    values = np.random.default_rng(0).normal(0.5, 1, (3, *shape))
    matrices = [_matrix(x) for x in (*values, np.zeros(shape), np.ones(shape))]
    expected = [crossed_interval(m).p_value() for m in matrices]
    assert crossed_p_values(matrices) == expected
    assert shape[0] == 1 or expected[3:] == [1.0, 0.0]  # identical values: no doubt left either way


def _matrix(values):
    seeds, prompts = values.shape
    return Matrix(values, tuple(range(seeds)), tuple(map(str, range(prompts))))
