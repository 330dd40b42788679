"""Minibatches that share denoiser calls: the same gradients, the same losses, within the micro-batch."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from factories import LOSS_METHODS, make_method, make_updater, random_experience, sample_groups
from sdpo_bench.advantages.experience import UpdateLog
from sdpo_bench.api import Loss, Method
from sdpo_bench.rollout.base_log_probs import base_statistics
from sdpo_bench.training import shared_calls
from sdpo_bench.training.shared_calls import call_size, calls, even_split, together
from sdpo_bench.training.update_order import Order, Task, windows

SHAPE = (4, 8, 8)


def in_order(groups, slots):
    """Groups in order; their steps begin at different ones, so that minibatches mix steps."""
    steps = torch.stack([torch.arange(slots).roll(g) for g in range(groups)])
    return Order(torch.arange(groups), steps)


def tasks(*sizes):
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [
        Task(torch.arange(start, start + size), torch.zeros(size, 1, dtype=torch.int64), 0.1)
        for start, size in zip(starts, sizes)
    ]


class _Any(Method):
    """Any loss."""

    def loss(self, batch):
        return Loss(batch.log_probs.mean())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(9, 64))
def test_a_call_holds_whole_minibatches_in_order_and_no_more_groups_than_allowed(sizes, most):
    found = list(calls(tasks(*sizes), most, 5, _Any(None)))
    assert torch.cat([together(call).groups for call in found]).tolist() == list(range(sum(sizes)))
    assert [len(part.groups) for call in found for part in call] == sizes
    assert all(len(together(call).groups) <= most for call in found)


def test_calls_are_as_few_as_they_can_be_and_equal():
    """Five minibatches of 16 with at most 64: 48 and 32, not 64 and 16."""
    found = list(calls(tasks(16, 16, 16, 16, 16), 64, 5, _Any(None)))
    assert [len(together(call).groups) for call in found] == [48, 32]


@given(st.integers(0, 300), st.integers(1, 64))
def test_pieces_are_as_few_as_they_can_be(rows, size):
    pieces = even_split(torch.arange(rows), size)
    assert len(pieces) == -(-rows // size) and max(map(len, pieces), default=0) <= size
    assert torch.cat([torch.arange(0), *pieces]).tolist() == list(range(rows))


@pytest.mark.parametrize(
    ("shape", "members", "most", "groups"),
    [
        (SHAPE, 1, 64, 64),  # the micro-batch
        (SHAPE, 8, 8, 8),
        (SHAPE, 1, 2048, 512),  # 512 * 256 elements = 2^17
        ((4, 64, 64), 2, 32, 4),  # SD-Turbo: 8 latents fill a call already, so four pairs stay alone
        ((4, 128, 128), 2, 32, 4),  # not even one pair would fit: the minibatch as it is
    ],
)
def test_only_small_calls_are_filled_with_further_minibatches(shape, members, most, groups):
    assert call_size(tasks(4, 4), most, shape, members) == groups


@pytest.mark.parametrize("name", LOSS_METHODS)
def test_gradients_and_losses_are_those_of_minibatches_alone(tiny_policy, monkeypatch, name):
    """Three minibatches of two groups make one optimiser step; with and without sharing, and with a smaller
    micro-batch. Differences are the float32 rounding of the denoiser in other batches."""
    method = make_method(name)
    schedule, trajectories = sample_groups(
        tiny_policy, groups=6, members=method.members, shared_noise=method.shared_noise
    )
    with tiny_policy.reference():
        base = base_statistics(tiny_policy, schedule, trajectories, range(6), 64)[0]
    experience = random_experience(trajectories, base if method.needs_reference else None)
    experience = replace(experience, advantages=experience.advantages * 1e-2, rewards=experience.rewards * 1e-2)
    found = []
    for elements, micro_batch in ((1, 64), (2**17, 64), (2**17, 4 * method.members), (2**17, 1)):
        monkeypatch.setattr(shared_calls, "CALL_ELEMENTS", elements)
        updater = make_updater(tiny_policy, schedule, method, accumulation=3, micro_batch=micro_batch)
        rows = []
        tiny_policy.on_call = rows.append
        (window,) = windows(in_order(6, 3), updater.settings, method.granularity)
        updater._accumulate(experience, window, log := UpdateLog(3), fresh=True)
        gradients = {n: p.grad.clone() for n, p in updater.parameters.items()}
        updater.optimiser.zero_grad(set_to_none=True)
        found.append((gradients, log, rows))
    (alone, log, separate), (_, _, shared), *_ = found
    assert len(shared) < len(separate) and max(shared) <= 64
    assert all(max(rows) <= size for (*_, rows), size in zip(found[2:], (4 * method.members, method.members)))
    assert all(sum(rows) == sum(separate) for *_, rows in found), "the same bill"
    for gradients, other, _ in found[1:]:
        for parameter, gradient in alone.items():
            assert (gradients[parameter] - gradient).abs().max() <= 1e-3 * gradient.abs().max() + 1e-9, parameter
        for key, (total, count) in log.sums.items():
            assert other.sums[key][1] == count
            assert other.sums[key][0].item() == pytest.approx(total.item(), rel=1e-3, abs=1e-4), key
        assert torch.allclose(other.grad_square, log.grad_square, rtol=1e-3)


def test_every_loss_sees_its_own_minibatch(tiny_policy):
    """A loss that normalises over its minibatch is not normalised over what shares the call."""
    seen = []

    class Watching(_Any):
        def loss(self, batch):
            seen.append(batch.rewards[:, 0, 0].tolist())
            return super().loss(batch)

    schedule, trajectories = sample_groups(tiny_policy, members=1, shared_noise=False)
    experience = random_experience(trajectories)
    updater = make_updater(tiny_policy, schedule, Watching(None), accumulation=2)
    (window,) = windows(in_order(4, 3), updater.settings, "step")
    updater._accumulate(experience, window, UpdateLog(3), fresh=True)
    expected = [experience.rewards[task.groups, 0, task.steps[:, 0]].tolist() for task in window]
    assert len(seen) == 6 and seen == expected
