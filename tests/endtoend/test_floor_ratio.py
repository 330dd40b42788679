"""The benchmark of the harness's own cost: its floor has every call that an epoch of a method is billed for."""

import pytest

from benchmarks import epochs
from benchmarks.floor_ratio import measure, small_trainer, trained_methods
from factories import TRAINED, make_method, mostly_slow


def latents(calls, kind, differentiated=False):
    """Latents or pictures in calls of a kind; ``differentiated``: only of those with a backward pass."""
    chosen = [call for call in calls if call.kind == kind and (call.differentiated or not differentiated)]
    return sum(len(call.arguments[0]) for call in chosen)


def test_it_measures_every_method_that_trains():
    assert sorted(trained_methods()) == sorted(TRAINED)


@pytest.mark.parametrize("method", mostly_slow([(name,) for name in TRAINED], (("nft",), ("draft",))))
def test_the_floor_has_every_call_of_the_bill(tiny_pipe, tmp_path, method):
    members = make_method(method).members
    trainer = small_trainer(tiny_pipe, method, tmp_path, images=4, steps=2)
    made = epochs.record(trainer)
    bill = trainer.ledger.bill()
    assert bill["images"] == max(4, members), "whole groups of the method's own size"
    for calls in (made, epochs.largest_batches(made, 64)):
        assert latents(calls, "unet") == sum(bill["forward"].values())
        assert latents(calls, "unet", differentiated=True) == bill["backward"] > 0
        assert latents(calls, "reward") == sum(bill["rewards"].values())
        assert latents(calls, "reward", differentiated=True) == bill["reward_backward"]
        assert latents(calls, "decode", differentiated=True) == bill["reward_backward"]
    found = measure(trainer, 1)
    assert found["fewest"] <= found["calls"] and found["ratio"] > 0
