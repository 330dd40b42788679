"""The numbers behind a table of methods, by hand: one family of tests, ranks over shared seeds, the level asked for."""

from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_grids import make_grid
from scipy import stats as scipy_stats

from sdpo_bench.results.panels import Panel
from sdpo_bench.results.scoreboard import base_spread, grid_win_rate, scoreboard
from sdpo_bench.statistics.eval_table import BASE, PanelKey
from sdpo_bench.statistics.intervals import crossed_interval
from sdpo_bench.statistics.matrices import Matrix, Measure, ScoreGrid

PROMPTS, STEPS = ("bee", "cat"), (1, 4)


def cells_of(label, by_seed, prompts=(0.0, 0.0), steps=(0.0, 0.0)):
    """One image a cell, scored with the sum of its seed's, its prompt's and its step count's number."""
    seeds, values = tuple(by_seed), np.array(list(by_seed.values()), dtype=float)
    scores = values[:, None, None, None] + np.array(prompts)[None, :, None, None] + np.array(steps)[None, None, :, None]
    return ScoreGrid(scores, seeds, PROMPTS, STEPS, (0,), label, Measure("good", "1", "train"))


def panel_of(*arms, base=0.0, reward="good"):
    """Methods beside a base model that scores ``base`` everywhere (None: there is none); trained for ``reward``."""
    key = PanelKey("sampler", "train", "good", "1")
    found = None if base is None else cells_of(BASE, {0: base})
    return Panel(SimpleNamespace(reward=reward), key, PROMPTS, (0,), STEPS, {a.method: a for a in arms}, found, {})


def three(*values):
    return dict(enumerate(values))


def lines_of(board):
    return {line.label: line for line in board.lines}


def test_a_method_of_one_seed_stays_in_the_family_as_one_that_shows_nothing():
    """Holm over three methods, of paired t tests of seed means; differences between prompts are no part of these."""
    arms = [cells_of("a", three(1, 2, 3), (-0.5, 0.5)), cells_of("b", three(1, 1.1, 1.2), (-0.5, 0.5))]
    found = lines_of(scoreboard(panel_of(*arms, cells_of("c", {0: 9.0}))))
    p = {"a": scipy_stats.ttest_1samp([1, 2, 3], 0).pvalue, "b": scipy_stats.ttest_1samp([1, 1.1, 1.2], 0).pvalue}
    assert found["b"].adjusted_p == pytest.approx(3 * p["b"])
    assert found["a"].adjusted_p == pytest.approx(2 * p["a"])
    assert found["c"].adjusted_p is None


def test_held_out_rewards_are_described_and_not_tested():
    arms = [cells_of("a", three(5.0, 5.1, 5.2)), cells_of("b", three(1.0, 1.1, 1.2))]
    board = scoreboard(panel_of(*arms, reward="another"))
    assert [(line.label, line.rank, line.adjusted_p) for line in board.lines] == [("a", None, None), ("b", None, None)]
    assert board.lines[0].gain.value == pytest.approx(5.1)
    assert (board.base.rank, board.notes) == (None, ())
    trained = scoreboard(panel_of(*arms))
    assert all(line.rank is not None and line.adjusted_p is not None for line in trained.lines)


def test_every_interval_and_the_ranks_have_the_level_asked_for():
    """Gains of 1, 2, 3 differ from 0 with p = .074: shown at 80 %, not at 95 %."""
    panel = panel_of(cells_of("a", three(1, 2, 3)))
    for level, ranks in ((0.95, (1, 1)), (0.8, (1, 2))):
        board = scoreboard(panel, level=level)
        (line,) = board.lines
        half = scipy_stats.t.ppf((1 + level) / 2, 2) / 3**0.5
        for found in (line.gain, line.scores[1], line.scores["mean"]):
            assert (found.low, found.value, found.high) == pytest.approx((2 - half, 2, 2 + half))
        assert line.win_rate.level == level
        assert (line.rank, board.base.rank) == ranks
        assert (line.tied, board.base.tied) == (ranks[1] == 1,) * 2


def test_methods_that_share_one_seed_have_no_ranks():
    board = scoreboard(panel_of(cells_of("a", {0: 5.0, 1: 5.1}), cells_of("b", {1: 1.0, 2: 1.1})))
    assert [line.rank for line in board.lines] == [None, None]
    assert board.notes == ("No ranks: the methods share fewer than two training seeds; run the same seeds for each.",)


def test_ranks_use_the_seeds_that_all_ranked_methods_have():
    """With its seed 0 the method b would lead."""
    arms = [cells_of("a", {1: 2.0, 2: 2.1, 3: 2.2}), cells_of("b", {0: 99.0, 1: 1.0, 2: 1.1, 3: 1.2})]
    board = scoreboard(panel_of(*arms))
    assert {line.label: line.rank for line in board.lines} == {"a": 1, "b": 2}
    assert board.notes == ("Ranks use the training seeds that all ranked methods have: 1, 2, 3.",)


def test_rows_come_by_rank_then_by_score_and_those_without_a_rank_last():
    """The method c has the highest score and one seed; a and b are not told apart."""
    arms = [
        cells_of("a", three(5.0, 5.4, 5.2)),
        cells_of("b", three(5.3, 5.1, 5.5)),
        cells_of("c", {0: 9.0}),
        cells_of("d", three(1.0, 1.1, 1.2)),
    ]
    board = scoreboard(panel_of(*arms))
    assert [(line.label, line.rank, line.tied) for line in board.lines] == [
        ("b", 1, True),
        ("a", 1, True),
        ("d", 3, False),
        ("c", None, False),
    ]
    assert (board.base.rank, board.base.tied) == (4, False)


AHEAD, ALIKE, ALIKE_TOO, LOW = three(5.0, 5.1, 5.2), three(4.8, 5.3, 5.1), three(5.2, 4.8, 5.25), three(1.0, 1.1, 1.2)


@pytest.mark.parametrize(
    ("arms", "said"),
    [
        ({"a": AHEAD, "d": LOW}, "a is ahead of all others at 4 steps. a gains 5.1 ["),
        ({"a": AHEAD, "b": ALIKE, "d": LOW}, "a leads at 4 steps; b is not told apart from it. a gains 5.1 ["),
        ({"a": AHEAD, "b": ALIKE, "c": ALIKE_TOO}, "a leads at 4 steps; c and b are not told apart from it. a gains"),
        ({"a": three(-1, 0, 1.5), "b": three(1, 0, -1.6)}, "No method is told apart from the base model at 4 steps."),
        ({"a": three(-1, 0, 1.5), "d": three(-9, -9.1, -9.2)}, "No method is ahead of the base model at 4 steps."),
        ({"d": three(-1, -1.1, -1.2)}, "No method is ahead of the base model at 4 steps."),
        ({"a": {0: 3.0}}, "No ranks: 1 seed, no interval, so no difference between methods can be shown. a gains 3 (1"),
    ],
)
def test_the_finding_in_words(arms, said):
    found = scoreboard(panel_of(*(cells_of(label, by_seed) for label, by_seed in arms.items())), 4).finding
    assert found.startswith(said)


def test_leaders_at_one_step_count():
    """At 1 step a leads alone, at 4 steps b does: the step counts move them by 3 and -3."""
    arms = [cells_of("a", AHEAD, steps=(3, -3)), cells_of("b", AHEAD), cells_of("d", LOW)]
    leaders = scoreboard(panel_of(*arms)).leaders
    assert (leaders[1], leaders[4]) == ({"a"}, {"b"})
    assert scoreboard(panel_of(cells_of("a", three(-1, 0, 1.5)))).leaders[1] == {"a", BASE}


def test_win_rate_is_the_crossed_interval_of_wins_cut_to_possible_values():
    # wins per seed and prompt: [[1, 1], [1, .5]]
    a = make_grid(np.array([[[[3.0]], [[3.0]]], [[[3.0]], [[2.0]]]]), steps=(1,))
    b = make_grid(np.full((2, 2, 1, 1), 2.0), steps=(1,), method="ddpo")
    found = grid_win_rate(a, b, 0.95)
    plain = crossed_interval(Matrix([[1.0, 1.0], [1.0, 0.5]], (0, 1), ("x", "y")))
    assert found.value == 0.875
    assert plain.low < 0 < 1 < plain.high
    assert (found.low, found.high) == (0.0, 1.0)
    assert found.p_value(0.5) == pytest.approx(plain.p_value(0.5))
    assert found.value + grid_win_rate(b, a, 0.95).value == 1.0


def test_wins_pair_single_images_of_the_same_seed():
    # 1 step: images (1, 3) against (1, 5): tie, loss; 4 steps: (5, 9) against (4, 8): two wins: (.5 + 0 + 1 + 1) / 4
    a, b = make_grid([[[[1.0, 3.0], [5.0, 9.0]]]]), make_grid([[[[1.0, 5.0], [4.0, 8.0]]]], method="ddpo")
    assert (grid_win_rate(a, b, 0.95).value, grid_win_rate(b, a, 0.95).value) == (0.625, 0.375)
    seeds = make_grid([[[[1.0]]], [[[5.0]]]], steps=(1,), seeds=(1, 2))
    others = make_grid([[[[4.0]]], [[[0.0]]]], steps=(1,), seeds=(2, 1), method="ddpo")
    assert grid_win_rate(seeds, others, 0.95).value == 1.0  # 1 against 0 and 5 against 4


def spread_of(scores, endpoint, steps=(1, 4)):
    base = make_grid(scores, method=BASE, steps=steps)
    panel = Panel(SimpleNamespace(reward="hpsv2"), None, base.prompts, base.images, steps, {}, base, {})
    return base_spread(panel, endpoint)


def test_the_base_models_spread_is_taken_over_images_after_averaging_step_counts():
    # images 1, 3, 5, 7: deviations 3, 1, 1, 3, sd = sqrt(20 / 3) with ddof=1
    assert spread_of([[[[1.0, 3.0]], [[5.0, 7.0]]]], 1, steps=(1,)) == pytest.approx(np.sqrt(20 / 3))
    # image 0: (1 + 3)/2 = 2, image 1: (5 + 7)/2 = 6; sd of 2 and 6 = sqrt(8)
    assert spread_of([[[[1.0, 5.0], [3.0, 7.0]]]], "mean") == pytest.approx(np.sqrt(8))
    assert spread_of(np.ones((1, 2, 2, 1)), "mean") is None
    assert spread_of(np.ones((1, 1, 2, 1)), "mean") is None
