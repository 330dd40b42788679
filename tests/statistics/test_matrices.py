"""Scores become matrices without losing, doubling or inventing an observation."""

import numpy as np
import pytest
from evaluation_grids import make_grid

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.eval_table import reduced
from sdpo_bench.statistics.matrices import Matrix, Measure, compare, paired, step_weights

# One seed, two prompts, steps 1 and 4, two images a cell.
SMALL = np.array([[[[1.0, 3.0], [5.0, 9.0]], [[0.0, 0.0], [2.0, 4.0]]]])


def test_images_of_a_cell_are_averaged_at_one_step_count():
    # prompt 0: (1 + 3)/2 = 2 at 1 step, (5 + 9)/2 = 7 at 4; prompt 1: 0 at 1 step, (2 + 4)/2 = 3 at 4
    found = reduced(make_grid(SMALL), 1)
    assert found.values.tolist() == [[2.0, 0.0]]
    assert reduced(make_grid(SMALL), 4).values.tolist() == [[7.0, 3.0]]
    assert (found.seeds, found.prompts, found.name) == ((0,), ("prompt 0", "prompt 1"), "sdpo")
    assert found.measure == Measure("hpsv2", "1", "test", 1)


def test_the_mean_endpoint_averages_step_counts_into_one_number_per_cell():
    # (2 + 7)/2 = 4.5 and (0 + 3)/2 = 1.5: the shape stays seeds x prompts
    assert reduced(make_grid(SMALL), "mean").values.tolist() == [[4.5, 1.5]]


def test_area_is_the_trapezoid_over_doublings():
    # log2 of 1, 2, 8 = 0, 1, 3: areas (1 + 3)/2 * 1 + (3 + 9)/2 * 2 = 14, over the range 3
    scores = np.array([1.0, 3.0, 9.0]).reshape(1, 1, 3, 1)
    assert reduced(make_grid(scores, steps=(1, 2, 8)), "area").values == pytest.approx(14 / 3)
    assert step_weights([4], "area").tolist() == [1.0]


def test_the_few_step_mean_is_the_same_whatever_else_was_judged():
    scores = np.array([1.0, 3.0, 8.0, 100.0]).reshape(1, 1, 4, 1)  # (1 + 3 + 8) / 3 = 4
    assert reduced(make_grid(scores, steps=(1, 2, 4, 50)), "few").values == pytest.approx(4)
    assert reduced(make_grid(scores[:, :, :3], steps=(1, 2, 4)), "few").values == pytest.approx(4)
    with pytest.raises(UsageError, match="needs scores at 1, 2 and 4 steps, got 1, 4"):
        step_weights([1, 4], "few")


def test_area_refuses_step_counts_below_one():
    with pytest.raises(UsageError, match="at least 1"):
        step_weights([0, 2], "area")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Measure("good", "2", "test"), "version is '1' for one and '2' for the other"),
        (Measure("pickscore", "1", "test"), "reward is 'good' for one and 'pickscore' for the other"),
        (Measure("good", "1", "train"), "split is 'test' for one and 'train' for the other"),
        (Measure("good", "1", "test", 4), "endpoint is 'mean' for one and 4 for the other"),
    ],
)
def test_unlike_rows_never_share_a_matrix(other, message):
    a = Matrix(np.zeros((1, 2)), (0,), ("x", "y"), Measure("good", "1", "test"), "sdpo")
    with pytest.raises(UsageError, match=message):
        paired(a, Matrix(np.zeros((1, 2)), (0,), ("x", "y"), other, "ddpo"))


def test_what_cannot_be_a_matrix_is_explained():
    with pytest.raises(UsageError, match="do not fit 2 seeds x 1 prompts"):
        Matrix(np.zeros((1, 2)), (0, 1), ("a",))
    with pytest.raises(UsageError, match="label occurs twice"):
        Matrix(np.zeros((2, 1)), (3, 3), ("a",))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_never_averaged(bad):
    with pytest.raises(UsageError, match="not finite"):
        Matrix(np.array([[1.0, bad]]), (0,), ("a", "b"))


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
        paired(a, Matrix(np.zeros((3, 1)), (1, 2, 3), ("y",), name="ddpo"))


def test_single_images_are_compared_and_ties_count_half():
    # 1 step: images (1, 3) against (1, 5): tie, loss; 4 steps: (5, 9) against (4, 8): two wins
    wins = compare(np.array([[1.0, 3.0], [5.0, 9.0]]), np.array([[1.0, 5.0], [4.0, 8.0]]))
    assert wins.tolist() == [[0.5, 0.0], [1.0, 1.0]]
