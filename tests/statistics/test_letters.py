"""Two methods share a letter exactly if they are not told apart."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_bench.errors import UsageError
from sdpo_bench.statistics.intervals import crossed_interval
from sdpo_bench.statistics.letters import letter_display, pairs_told_apart
from sdpo_bench.statistics.matrices import Matrix, paired
from sdpo_bench.statistics.ranking import holm


def pairs(*texts):
    return {frozenset(text) for text in texts}


def test_letters_by_hand():
    assert letter_display("abc", pairs()) == {"a": "a", "b": "a", "c": "a"}
    assert letter_display("abc", pairs("ab", "ac", "bc")) == {"a": "a", "b": "b", "c": "c"}
    # The outer two differ, the middle one differs from neither: ranks with ties cannot say this.
    assert letter_display("abc", pairs("ac")) == {"a": "a", "b": "ab", "c": "b"}
    # The last differs from all others; the first from the third only.
    assert letter_display("abcd", pairs("ac", "ad", "bd", "cd")) == {"a": "a", "b": "ab", "c": "b", "d": "c"}
    assert letter_display([], set()) == {}


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 9), st.randoms(use_true_random=False))
def test_sharing_a_letter_means_not_told_apart(size, random):
    names = [f"m{i}" for i in range(size)]
    apart = {frozenset(pair) for pair in combinations(names, 2) if random.random() < 0.4}
    letters = letter_display(names, apart)
    for a, b in combinations(names, 2):
        assert bool(set(letters[a]) & set(letters[b])) == (frozenset((a, b)) not in apart)
    assert all(letters.values()) and "a" in letters[names[0]]
    groups = [{name for name in names if letter in letters[name]} for letter in sorted(set("".join(letters.values())))]
    assert not any(one < other for one in groups for other in groups)  # absorbed


def test_more_groups_than_letters():
    names = [f"m{i}" for i in range(60)]
    letters = letter_display(names, {frozenset(pair) for pair in combinations(names, 2)})
    assert (letters["m0"], letters["m25"], letters["m26"], letters["m51"], letters["m52"]) == (
        "a", "z", "A", "Z", "(52)",
    )  # fmt: skip


def methods(seed, offsets, n_seeds=5):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n_seeds, 20))
    matrices = {}
    for name, offset in offsets.items():
        values = shared + offset + 0.3 * rng.normal(size=shared.shape)
        matrices[name] = Matrix(values, range(n_seeds), [f"prompt {p}" for p in range(20)], name=name)
    return matrices


@pytest.mark.parametrize("seed", range(10))
def test_pairs_are_one_family_of_crossed_tests(seed):
    given_methods = methods(seed, {"a": 0, "b": 0.1, "c": 0.2, "d": 0.4})
    names = list(combinations(given_methods, 2))
    p = [crossed_interval(paired(given_methods[a], given_methods[b])).p_value() for a, b in names]
    expected = {frozenset(pair) for pair, adjusted in zip(names, holm(p)) if adjusted < 0.05}
    assert pairs_told_apart(given_methods) == expected
    assert pairs_told_apart(dict(reversed(given_methods.items()))) == expected


def test_one_seed_tells_nothing_apart():
    assert pairs_told_apart(methods(0, {"a": 0, "b": 100}, n_seeds=1)) == frozenset()
    assert pairs_told_apart(methods(0, {"a": 0})) == frozenset()
    with pytest.raises(UsageError, match="between 0 and 1"):
        pairs_told_apart(methods(0, {"a": 0}), level=1.0)
