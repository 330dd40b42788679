"""The Vendi score counts different pictures; eigenvalues by hand."""

import numpy as np
import pytest

from sdpo_bench.statistics.vendi import vendi_score


@pytest.mark.parametrize("n", [1, 2, 5])
def test_all_alike_count_once_and_none_alike_each(n):
    assert vendi_score(np.ones((n, n))) == pytest.approx(1)
    assert vendi_score(np.eye(n)) == pytest.approx(n)


def test_two_clusters_count_as_two():
    assert vendi_score(np.kron(np.eye(2), np.ones((3, 3)))) == pytest.approx(2)


def test_two_pictures_with_a_cosine():
    # [[1, c], [c, 1]] / 2 has the eigenvalues (1 + c) / 2 and (1 - c) / 2: .75 and .25 for c = .5
    half = np.array([[1, 0.5], [0.5, 1]])
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert vendi_score(half) == pytest.approx(np.exp(entropy))
    both = vendi_score(np.stack([half, np.eye(2)]))  # one number for each leading index
    assert both.tolist() == pytest.approx([np.exp(entropy), 2])


def test_the_order_of_pictures_does_not_matter():
    unit = np.random.default_rng(0).normal(size=(6, 9))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    order = [3, 1, 5, 0, 2, 4]
    assert vendi_score(unit @ unit.T) == pytest.approx(vendi_score(unit[order] @ unit[order].T))
