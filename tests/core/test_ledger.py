"""The ledger and its limits by hand: what fits a budget, what is charged to whom, how bills are brought together."""

import math

import pytest

from sdpo_bench.errors import UsageError
from sdpo_bench.ledger import Cost, Ledger, Limit, limit_text, parse_budget
from sdpo_bench.training.bill_text import bill_text

GROUP = Cost(images=2, forward=12, backward=8, rewards=5)


@pytest.mark.parametrize(
    ("axis", "amount", "overhead", "fit"),
    [
        ("denoiser_calls", 100, 0, 5),
        ("denoiser_calls", 100, 30, 3),  # what an epoch costs besides its groups comes first
        ("denoiser_calls", 100, 81, 0),
        ("denoiser_calls", 100, 200, 0),
        ("denoiser_calls", 10_000, 0, 8),  # no more than are wanted
        ("images", 16, 0, 8),
        ("images", 15, 0, 7),
        ("reward_calls", 14, 0, 2),
        ("optimiser_steps", 1, 0, 8),  # not known beforehand: it stops inside the epoch
        ("optimiser_steps", 0, 0, 0),
    ],
)
def test_as_many_groups_as_fit(axis, amount, overhead, fit):
    assert Limit(axis, amount).groups_left(Ledger(), GROUP, 8, overhead) == fit


def test_what_was_used_is_no_longer_left():
    ledger = Ledger(images=12, forward={"rollout": 30, "update": 20}, backward=10, rewards={"a": 6}, reward_backward=4)
    assert Limit("images", 16).groups_left(ledger, GROUP, 8) == 2
    assert Limit("denoiser_calls", 100).groups_left(ledger, GROUP, 8) == 2
    assert Limit("reward_calls", 20).groups_left(ledger, GROUP, 8) == 2
    assert Limit("images", 12).groups_left(ledger, GROUP, 8) == 0
    assert Limit("images", 12).reached(ledger) and not Limit("images", 13).reached(ledger)


def test_a_phase_ends_however_it_ends():
    """An epoch that ran out of memory is done again, and its calls are charged as those of any other."""
    ledger = Ledger()
    with pytest.raises(ZeroDivisionError), ledger.during("rollout"):
        with ledger.during("reference"):
            ledger.charge_call(3)
        ledger.charge_call(2)
        raise ZeroDivisionError
    ledger.charge_call(1)
    assert ledger.forward == {"reference": 3, "rollout": 2, "diagnostic": 1}


def test_bills_of_processes_are_counted_from_where_they_parted():
    before = Ledger(forward={"rollout": 10}, backward=4, rewards={"a": 6}, cached={"a": 1}, reward_backward=2)
    parts = [
        Ledger(forward={"rollout": 13}, backward=5, rewards={"a": 8}, cached={"a": 1}, reward_backward=3),
        Ledger(
            forward={"rollout": 14, "update": 5},
            backward=7,
            rewards={"a": 6, "b": 2},
            cached={"a": 4},
            reward_backward=2,
        ),
    ]
    parts[0].absorb(parts, before)
    assert parts[0].forward == {"rollout": 17, "update": 5} and parts[0].backward == 8
    assert parts[0].rewards == {"a": 8, "b": 2} and parts[0].cached == {"a": 4}
    assert parts[0].reward_backward == 3


def test_a_restored_ledger_shares_nothing_with_the_one_it_was_taken_from():
    ledger = Ledger(rewards={"a": 1})
    copy = Ledger.from_state(ledger.state_dict())
    copy.charge_reward("a", 2, cached=3)
    assert ledger.rewards == {"a": 1} and ledger.cached == {}
    assert copy.rewards == {"a": 3} and copy.cached == {"a": 3}, "what is remembered costs nothing"


@pytest.mark.parametrize(
    ("text", "axis", "amount"),
    [
        ("images=3000", "images", 3000),
        ("images=3k", "images", 3000),
        ("reward-calls=1.5M", "reward_calls", 1.5e6),
        ("images=1.005k", "images", 1005),  # 1.005 * 1e3 is 1004.9999999999999
        ("denoiser_calls=1.005M", "denoiser_calls", 1_005_000),
    ],
)
def test_amounts_are_read(text, axis, amount):
    assert parse_budget(text) == (axis, amount)


@pytest.mark.parametrize("amount", ["0", "-1", "0k", "inf", "nan", "", "k", "3G"])
def test_no_amounts_are_refused(amount):
    with pytest.raises(UsageError, match="Example: --budget images=3000"):
        parse_budget(f"images={amount}")


def test_one_of_a_budget_is_singular():
    assert [limit_text(n, "denoiser_calls") for n in (1, 1.5, 2)] == [
        "1 denoiser call",
        "1.5 denoiser calls",
        "2 denoiser calls",
    ]


def test_no_limit_is_below_a_group_of_no_cost():
    """An axis that groups do not spend is stopped elsewhere, and must not divide by zero here."""
    assert Limit("seconds", math.inf).groups_left(Ledger(seconds=5.0), GROUP, 3) == 3


def test_the_bill_says_that_diagnostic_calls_measure_the_kl():
    ledger = Ledger()
    for phase, calls in (("rollout", 2), ("diagnostic", 504)):
        with ledger.during(phase):
            ledger.charge_call(calls)
    assert "denoiser calls 504 to measure the KL + 2 rollout forward" in bill_text(ledger.bill(), 1)
