"""Windows of random steps: which steps draw noise in which epoch."""

import pytest

from sdpo_bench.errors import UsageError
from sdpo_bench.rollout.sde_steps import changes_by_epoch, random_steps


def at(rule, steps=6, seed=0, epoch=0):
    return list(random_steps(rule, steps, seed=seed, epoch=epoch))


def test_the_last_step_is_never_random():
    assert at("all") == [0, 1, 2, 3, 4]
    assert at("all", steps=1) == []
    assert at("first:2") == [0, 1]
    for epoch in range(200):
        assert 5 not in at("random:2", epoch=epoch) and 5 not in at("window:3:1", epoch=epoch)


def test_a_window_slides_by_one_step_and_begins_again():
    """MixGRPO's progressive strategy: 25 iterations at one place unless set."""
    starts = [at("window:3:1", epoch=epoch)[0] for epoch in range(8)]
    assert starts == [0, 1, 2, 0, 1, 2, 0, 1]
    assert [at("window:3", epoch=epoch)[0] for epoch in (0, 1, 24, 25, 26, 49, 50, 74, 75)] == [
        0,
        0,
        0,
        1,
        1,
        1,
        2,
        2,
        0,
    ]
    assert at("window:3:1", epoch=1) == [1, 2, 3]


def test_a_random_window_is_drawn_for_each_epoch_from_the_seed():
    places = [tuple(at("random:2", seed=3, epoch=epoch)) for epoch in range(400)]
    assert places == [tuple(at("random:2", seed=3, epoch=epoch)) for epoch in range(400)]
    assert set(places) == {(i, i + 1) for i in range(4)}
    assert max(places.count(place) for place in set(places)) < 150
    assert places != [tuple(at("random:2", seed=4, epoch=epoch)) for epoch in range(400)]


def test_a_random_window_within_the_first_steps_is_flow_grpo_fasts():
    """sde_window_size 3, sde_window_range (0, 5) of 10 steps: it begins at randint(0, 5 - 3), both ends included, so
    steps 0-2, 1-3 or 2-4, each in a third of 3000 epochs (standard deviation 26)."""
    places = [tuple(at("random:3:5", steps=10, seed=7, epoch=epoch)) for epoch in range(3000)]
    counts = {place: places.count(place) for place in set(places)}
    assert set(counts) == {(0, 1, 2), (1, 2, 3), (2, 3, 4)}
    assert all(abs(count - 1000) < 4 * 26 for count in counts.values())
    assert places == [tuple(at("random:3:5", steps=10, seed=7, epoch=epoch)) for epoch in range(3000)]
    assert places != [tuple(at("random:3:5", steps=10, seed=8, epoch=epoch)) for epoch in range(3000)]


def test_the_range_of_a_random_window_has_two_ends():
    """As long as the window it leaves one place; up to the last random step it is random:W."""
    for epoch in range(50):
        assert at("random:3:3", epoch=epoch) == at("first:3")
        assert at("random:2:5", epoch=epoch) == at("random:2", epoch=epoch)
        assert at("random:1:2", epoch=epoch) in ([0], [1])


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("random:3:2", r"do not fit into the first 2\. .*sde_steps=random:2:3, or K from 3 to 5"),
        ("random:2:6", r"5 of schedule.steps = 6 can be random: the last never is.*sde_steps=random:2 "),
        ("random:2:9", "K from 2 to 5"),
        ("random:6:9", "do not fit into 6 denoising steps"),
    ],
)
def test_a_range_that_the_window_or_the_trajectory_does_not_have_is_refused(rule, said):
    with pytest.raises(UsageError, match=said):
        at(rule)


def test_only_moving_windows_change_by_epoch():
    still, moving = ("all", "first:2"), ("random:2", "random:2:4", "window:2", "window:2:5")
    assert not any(changes_by_epoch(rule) for rule in still)
    assert all(changes_by_epoch(rule) for rule in moving)


@pytest.mark.parametrize("rule", ["first:6", "random:6", "window:9", "window:6:3"])
def test_a_window_longer_than_the_random_steps_is_refused(rule):
    with pytest.raises(UsageError, match="do not fit into 6 denoising steps"):
        at(rule)


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "first",
        "first:0",
        "random:-1",
        "random:2:0",
        "random:2:4:1",
        "first:2:3",
        "window:2:0",
        "some",
        "all:2",
        "window:2:3:4",
    ],
)
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(UsageError, match="expected all, first:K"):
        at(rule)
