"""Rows become matrices without losing, doubling or inventing an observation."""

import numpy as np
import pandas as pd
import pytest
from evaluation_rows import make_rows

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.attrition import run_counts, scored_runs
from sdpo_bench.statistics.matrices import (
    Matrix,
    Measure,
    area_under_step_curve,
    as_fixed_model,
    matrix,
    paired,
    win_matrix,
)

# One seed, two prompts, steps 1 and 4, two images a cell.
SMALL = np.array([[[[1.0, 3.0], [5.0, 9.0]], [[0.0, 0.0], [2.0, 4.0]]]])


def test_images_of_a_cell_are_averaged_at_one_step_count():
    # prompt 0: (1 + 3)/2 = 2 at 1 step, (5 + 9)/2 = 7 at 4; prompt 1: 0 at 1 step, (2 + 4)/2 = 3 at 4
    found = matrix(make_rows(SMALL), endpoint=1)
    assert found.values.tolist() == [[2.0, 0.0]]
    assert matrix(make_rows(SMALL), endpoint=4).values.tolist() == [[7.0, 3.0]]
    assert (found.seeds, found.prompts, found.name) == ((0,), ("prompt 0", "prompt 1"), "sdpo")
    assert found.measure == Measure("hpsv2", "1", "test", 1)


def test_the_mean_endpoint_averages_step_counts_into_one_number_per_cell():
    # (2 + 7)/2 = 4.5 and (0 + 3)/2 = 1.5: the shape stays seeds x prompts
    assert matrix(make_rows(SMALL), endpoint="mean").values.tolist() == [[4.5, 1.5]]


def test_area_is_the_trapezoid_over_doublings():
    # log2 of 1, 2, 8 = 0, 1, 3: areas (1 + 3)/2 * 1 + (3 + 9)/2 * 2 = 14, over the range 3
    assert area_under_step_curve({8: 9.0, 1: 1.0, 2: 3.0}) == pytest.approx(14 / 3)
    assert area_under_step_curve({4: 2.5}) == 2.5
    scores = np.array([1.0, 3.0, 9.0]).reshape(1, 1, 3, 1)
    assert matrix(make_rows(scores, steps=(1, 2, 8)), endpoint="area").values == pytest.approx(14 / 3)


def test_area_refuses_step_counts_below_one():
    with pytest.raises(UsageError, match="at least 1"):
        area_under_step_curve({0: 1.0, 2: 1.0})


def test_row_order_does_not_change_a_single_bit():
    rows = make_rows(np.random.default_rng(0).normal(size=(3, 4, 2, 5)))
    for seed in range(5):
        shuffled = rows.sample(frac=1, random_state=seed)
        found, expected = matrix(shuffled, endpoint="area"), matrix(rows, endpoint="area")
        assert (found.values == expected.values).all()
        assert (found.seeds, found.prompts) == (expected.seeds, expected.prompts)


def test_a_missing_cell_is_named():
    rows = make_rows(np.zeros((2, 3, 2, 1)), seeds=(7, 8))
    gone = (rows["seed"] == 8) & (rows["prompt"] == "prompt 1") & (rows["steps"] == 4)
    with pytest.raises(UsageError, match=r"1 of 12 cells .*seed 8, prompt 'prompt 1', steps 4, image 0"):
        matrix(rows[~gone], endpoint="mean")
    assert matrix(rows[~gone], endpoint=1).values.shape == (2, 3)  # complete at 1 step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "2"}, r"mix 2 values of 'version' \(1, 2\)"),
        ({"reward": "pickscore"}, "mix 2 values of 'reward'"),
        ({"split": "train"}, "mix 2 values of 'split'"),
        ({"method": "ddpo"}, "mix 2 values of 'method'"),
    ],
)
def test_unlike_rows_never_share_a_matrix(change, message):
    more = make_rows(np.zeros((1, 2, 2, 1)), seeds=(5,)).assign(**change)
    with pytest.raises(UsageError, match=message):
        matrix(pd.concat([make_rows(np.zeros((1, 2, 2, 1))), more]), endpoint=1)


def test_a_seed_belongs_to_one_run_and_a_row_counts_once():
    rows = make_rows(np.zeros((1, 2, 2, 1)))
    with pytest.raises(UsageError, match="seed 0 is claimed by 2 runs"):
        matrix(pd.concat([rows, rows.assign(run="other", image=1)]), endpoint=1)
    with pytest.raises(UsageError, match="scored more than once"):
        matrix(pd.concat([rows, rows]), endpoint=1)


def test_what_cannot_be_a_matrix_is_explained():
    rows = make_rows(np.zeros((1, 2, 2, 1)))
    with pytest.raises(UsageError, match="lack the columns prompt, score"):
        matrix(rows.drop(columns=["prompt", "score"]), endpoint=1)
    with pytest.raises(UsageError, match=r"no scores at endpoint 3; valid: .* 1, 4"):
        matrix(rows, endpoint=3)
    with pytest.raises(UsageError, match="no evaluation rows"):
        matrix(rows.iloc[:0], endpoint=1)
    with pytest.raises(UsageError, match="as_fixed_model"):
        matrix(rows.assign(seed=np.nan), endpoint=1)
    with pytest.raises(UsageError, match="do not fit 2 seeds x 1 prompts"):
        Matrix(np.zeros((1, 2)), (0, 1), ("a",))
    with pytest.raises(UsageError, match="label occurs twice"):
        Matrix(np.zeros((2, 1)), (3, 3), ("a",))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None])
def test_scores_that_are_not_finite_are_refused_with_the_run(bad):
    rows = make_rows(np.zeros((2, 2, 2, 1)))
    rows.loc[rows.index[-1], "score"] = bad
    with pytest.raises(UsageError, match=r"1 of 8 scores are NaN or infinite \(runs: sdpo-s1\)"):
        matrix(rows, endpoint=1)
    with pytest.raises(UsageError, match="not finite"):
        Matrix(np.array([[1.0, np.nan]]), (0,), ("a", "b"))


def test_matrices_are_read_only_copies():
    values = np.zeros((1, 1))
    found = Matrix(values, (0,), ("a",))
    values[0, 0] = 5.0
    assert found.values[0, 0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        found.values[0, 0] = 1.0


def test_pairing_goes_by_label_not_by_position():
    a = Matrix([[1.0, 2.0], [3.0, 4.0]], (1, 2), ("x", "y"), name="a")
    b = Matrix([[40.0, 30.0], [20.0, 10.0]], (2, 1), ("y", "x"), name="b")
    # seed 1: x 1 - 10, y 2 - 20; seed 2: x 3 - 30, y 4 - 40
    found = paired(a, b)
    assert found.values.tolist() == [[-9.0, -18.0], [-27.0, -36.0]]
    assert (found.seeds, found.prompts, found.name, found.note) == ((1, 2), ("x", "y"), "a - b", "")


def test_pairing_explains_what_differs():
    a = Matrix(np.zeros((3, 1)), (1, 2, 3), ("x",), name="sdpo")
    with pytest.raises(UsageError, match=r"seeds differ \(only in sdpo: 1, only in ddpo: 4\)"):
        paired(a, Matrix(np.zeros((3, 1)), (2, 3, 4), ("x",), name="ddpo"))
    with pytest.raises(UsageError, match=r"prompts differ \(only in sdpo: x, only in ddpo: y\)"):
        paired(a, Matrix(np.zeros((3, 1)), (1, 2, 3), ("y",), name="ddpo"), common_seeds=True)
    with pytest.raises(UsageError, match="version is '' for one and '2' for the other"):
        paired(a, Matrix(np.zeros((3, 1)), (1, 2, 3), ("x",), Measure(version="2"), "ddpo"))
    with pytest.raises(UsageError, match=r"run the missing seeds$"):
        paired(a, Matrix(np.zeros((1, 1)), (9,), ("x",), name="ddpo"), common_seeds=True)


def test_common_seeds_are_used_on_request_and_the_rest_is_named():
    a = Matrix([[1.0], [2.0], [3.0]], (1, 2, 3), ("x",), name="sdpo")
    b = Matrix([[30.0], [20.0], [40.0]], (3, 2, 4), ("x",), name="ddpo")
    found = paired(a, b, common_seeds=True)
    assert (found.seeds, found.values.tolist()) == ((2, 3), [[-18.0], [-27.0]])
    assert "only in sdpo: 1, only in ddpo: 4" in found.note


def test_wins_compare_single_images_and_ties_count_half():
    # 1 step: images (1, 3) against (1, 5): tie, loss -> .25; 4 steps: (5, 9) against (4, 8): two wins -> 1
    a = make_rows([[[[1.0, 3.0], [5.0, 9.0]]]])
    b = make_rows([[[[1.0, 5.0], [4.0, 8.0]]]], method="ddpo")
    assert win_matrix(a, b, endpoint=1).values.tolist() == [[0.25]]
    assert win_matrix(a, b, endpoint=4).values.tolist() == [[1.0]]
    assert win_matrix(a, b, endpoint="mean").values.tolist() == [[0.625]]
    assert win_matrix(b, a, endpoint="mean").values.tolist() == [[0.375]]


def test_wins_need_the_same_images_and_pair_seeds_by_label():
    a = make_rows([[[[1.0]]], [[[5.0]]]], seeds=(1, 2), steps=(1,))
    b = make_rows([[[[4.0]]], [[[2.0]]]], seeds=(2, 3), steps=(1,), method="ddpo")
    assert win_matrix(a, b, endpoint=1, common_seeds=True).values.tolist() == [[1.0]]  # seed 2: 5 against 4
    with pytest.raises(UsageError, match="seeds differ"):
        win_matrix(a, b, endpoint=1)
    with pytest.raises(UsageError, match="images differ"):
        win_matrix(a, b.assign(seed=b["seed"] - 1, image=7), endpoint=1)


def test_a_fixed_model_is_the_same_reference_for_every_seed():
    base = make_rows([[[[1.0]], [[2.0]]]], method="base", steps=(1,))
    for one in (base, base.assign(seed=np.nan)):
        found = matrix(as_fixed_model(one, (3, 1)), endpoint=1)
        assert (found.seeds, found.values.tolist()) == ((1, 3), [[1.0, 2.0], [1.0, 2.0]])
    with pytest.raises(UsageError, match="one seed label at most, got 0, 1"):
        as_fixed_model(make_rows(np.zeros((2, 1, 1, 1)), steps=(1,)), (0, 1))


def test_diverged_and_failed_runs_are_counted_and_set_apart_whole():
    rows = make_rows(np.zeros((3, 2, 2, 1)))
    rows.loc[(rows["seed"] == 1) & (rows["steps"] == 4), "score"] = [np.nan, np.inf]
    rows = pd.concat([rows, make_rows(np.zeros((1, 2, 2, 1)), method="ddpo")])
    kept, counts = scored_runs(rows, failed={"sdpo-s9": "sdpo", "d3po-s0": "d3po"})
    d3po, ddpo, sdpo = counts
    assert sdpo.words() == "sdpo: 2 of 4 runs scored, 1 diverged (sdpo-s1), 1 without a result (sdpo-s9)"
    assert (sdpo.total, sdpo.bad_scores) == (4, 2)
    assert ddpo.words() == "ddpo: 1 of 1 runs scored"
    assert d3po.words() == "d3po: 0 of 1 runs scored, 1 without a result (d3po-s0)"
    assert set(kept["run"]) == {"sdpo-s0", "sdpo-s2", "ddpo-s0"}  # the finite rows of sdpo-s1 go with it
    assert matrix(kept[kept["method"] == "sdpo"], endpoint=4).seeds == (0, 2)


def test_a_failed_run_that_left_rows_counts_once_as_failed():
    rows = make_rows(np.zeros((2, 1, 1, 1)), steps=(1,))
    rows.loc[rows["seed"] == 1, "score"] = np.nan
    (counts,) = run_counts(rows, failed={"sdpo-s0": "sdpo", "sdpo-s1": "sdpo"})
    assert (counts.scored, counts.diverged, counts.failed) == ((), (), ("sdpo-s0", "sdpo-s1"))
    assert counts.total == 2
