"""The numbers behind a table of methods, by hand: families of tests, letters over shared seeds, the level asked for."""

from types import SimpleNamespace

import numpy as np
import pytest
from evaluation_grids import make_grid
from scipy import stats as scipy_stats

from sdpo_bench.results.comparability import Setting
from sdpo_bench.results.panels import Panel
from sdpo_bench.results.scoreboard import base_spread, grid_win_rate, scoreboard
from sdpo_bench.statistics.eval_table import BASE, PanelKey
from sdpo_bench.statistics.intervals import crossed_interval
from sdpo_bench.statistics.matrices import Matrix, Measure, ScoreGrid
from sdpo_bench.statistics.ranking import holm

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
    setting = Setting("id", {"reward.name": reward}, "title", ())
    return Panel(setting, key, PROMPTS, (0,), STEPS, {a.method: a for a in arms}, found, {})


def three(*values):
    return dict(enumerate(values))


def lines_of(board):
    return {line.label: line for line in board.lines}


def crossed_p(*values, prompts=(0.0, 0.0)):
    """Of the mean of a seed x prompt table whose entries are seed + prompt."""
    return crossed_interval(Matrix(np.add.outer(values, prompts), range(len(values)), PROMPTS)).p_value()


def test_a_method_of_one_seed_stays_in_the_family_as_one_that_shows_nothing():
    """Holm over three methods, of the p values that belong to the intervals beside them."""
    arms = [cells_of("a", three(1, 2, 3), (-0.5, 0.5)), cells_of("b", three(1, 1.1, 1.2), (-0.5, 0.5))]
    found = lines_of(scoreboard(panel_of(*arms, cells_of("c", {0: 9.0}))))
    p = {"a": crossed_p(1, 2, 3, prompts=(-0.5, 0.5)), "b": crossed_p(1, 1.1, 1.2, prompts=(-0.5, 0.5))}
    first, second = sorted(p, key=p.get)
    assert found[first].adjusted_p == pytest.approx(3 * p[first])
    assert found[second].adjusted_p == pytest.approx(max(2 * p[second], 3 * p[first]))
    assert found["a"].gain.p_value() == pytest.approx(p["a"])
    assert found["c"].adjusted_p is None


def test_of_held_out_rewards_only_the_gains_are_tested():
    arms = [cells_of("a", three(5.0, 5.1, 5.2)), cells_of("b", three(1.0, 1.1, 1.2))]
    board = scoreboard(panel_of(*arms, reward="another"))
    assert [(line.label, line.letters, line.difference) for line in board.lines] == [("a", "", None), ("b", "", None)]
    assert board.lines[0].gain.value == pytest.approx(5.1)
    assert board.lines[0].adjusted_p == pytest.approx(2 * crossed_p(5.0, 5.1, 5.2))
    assert (board.leaders, board.pairs.notes) == ({}, ())
    trained = scoreboard(panel_of(*arms))
    assert all(line.letters and line.adjusted_p is not None for line in trained.lines)


def test_every_interval_and_the_letters_have_the_level_asked_for():
    """Gains of 1, 2, 3 differ from 0 with p = .074: shown at 80 %, not at 95 %."""
    panel = panel_of(cells_of("a", three(1, 2, 3)))
    for level, leaders in ((0.95, {"a", BASE}), (0.8, {"a"})):
        board = scoreboard(panel, level=level)
        (line,) = board.lines
        half = scipy_stats.t.ppf((1 + level) / 2, 2) / 3**0.5
        for found in (line.gain, line.scores[1], line.scores["mean"]):
            assert (found.low, found.value, found.high) == pytest.approx((2 - half, 2, 2 + half))
        assert board.leaders["mean"] == leaders
        assert (line.letters, board.base.letters) == ("a", "")  # the base model has none


def test_methods_that_share_one_seed_have_no_letters():
    board = scoreboard(panel_of(cells_of("a", {0: 5.0, 1: 5.1}), cells_of("b", {1: 1.0, 2: 1.1})))
    assert [line.letters for line in board.lines] == ["", ""]
    assert board.pairs.notes == (
        "No difference between methods can be shown: they share fewer than two seeds; run the same seeds for each.",
    )


def test_letters_use_the_seeds_that_all_lettered_methods_have():
    """With its seed 0 the method b would not be told apart."""
    arms = [cells_of("a", {1: 2.0, 2: 2.1, 3: 2.2}), cells_of("b", {0: 5.0, 1: 1.0, 2: 1.1, 3: 1.2})]
    board = scoreboard(panel_of(*arms))
    assert {line.label: line.letters for line in board.lines} == {"a": "a", "b": "b"}
    assert board.pairs.notes == ("Letters use the training seeds that all lettered methods have: 1, 2, 3.",)
    assert (board.pairs.best, board.pairs.seeds) == ("a", (1, 2, 3))


def test_the_best_is_the_leader_over_the_shared_seeds():
    """The method b is above a over its own seeds (3.5 against 2.1) and below it over the seeds that both have."""
    arms = [cells_of("a", {1: 2.0, 2: 2.1, 3: 2.2}), cells_of("b", {0: 10.7, 1: 1.0, 2: 1.1, 3: 1.2})]
    board = scoreboard(panel_of(*arms))
    assert board.rows[0].label == "b"
    assert (board.pairs.best, board.leaders["mean"], board.first.label) == ("a", {"a"}, "a")
    below = scoreboard(panel_of(*arms, base=4.0))
    assert (below.pairs.best, below.first.label) == (BASE, "b")


def test_rows_come_by_score_the_base_model_among_them():
    """The method c has the highest score and one seed; a and b are not told apart."""
    arms = [
        cells_of("a", three(5.0, 5.4, 5.2)),
        cells_of("b", three(5.3, 5.1, 5.5)),
        cells_of("c", {0: 9.0}),
        cells_of("d", three(-1.0, -1.1, -1.2)),
    ]
    board = scoreboard(panel_of(*arms))
    assert [(line.label, line.letters) for line in board.rows] == [
        ("c", ""),
        ("b", "a"),
        ("a", "a"),
        (BASE, ""),
        ("d", "b"),
    ]


@pytest.mark.parametrize(
    ("labels", "asked_for", "reference"),
    [
        (("sdpo", "x", "y"), "", "sdpo"),
        (("sdpo", "x", "y"), "y", "y"),
        (("sdpo", "x", "y"), "absent", "sdpo"),
        (("w", "x", "y"), "", "w"),  # without SDPO the best
    ],
)
def test_differences_to_the_reference_are_one_family(labels, asked_for, reference):
    """Every other row, the base model (0 everywhere) too, minus the reference."""
    values = dict(zip(labels, ((3.0, 3.1, 3.5), (1.0, 1.3, 0.9), (2.0, 2.6, 2.1))))
    board = scoreboard(panel_of(*(cells_of(m, three(*v)) for m, v in values.items())), reference=asked_for)
    assert board.reference == reference
    rows = {line.label: line for line in board.rows}
    assert (rows[reference].difference, rows[reference].difference_p) == (None, None)
    apart = {m: np.subtract(v, values[reference]) for m, v in {**values, BASE: (0, 0, 0)}.items() if m != reference}
    p = {label: crossed_p(*difference) for label, difference in apart.items()}
    for (label, difference), adjusted in zip(apart.items(), holm(list(p.values()))):
        assert rows[label].difference.value == pytest.approx(difference.mean())
        assert rows[label].difference_p == pytest.approx(adjusted)


def test_the_few_step_mean_needs_all_of_its_steps():
    assert scoreboard(panel_of(cells_of("a", three(1, 2, 3)))).lines[0].few_gain is None  # judged at 1 and 4 steps
    assert "few" not in scoreboard(panel_of(cells_of("a", three(1, 2, 3)))).lines[0].scores


AHEAD, LOW = three(5.0, 5.1, 5.2), three(1.0, 1.1, 1.2)


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
