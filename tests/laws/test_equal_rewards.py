"""Rewards that do not differ teach nothing, whatever their size: rounding errors never become advantages."""

import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_bench.advantages.normalise import Normaliser, advantages, discounted_returns
from sdpo_bench.scoring.dense_rewards import Queries, choose_queries, predicted_rewards

MODES = ["per-step-prompt", "per-prompt", "per-step", "batch", "group"]
POOLED = ["per-prompt", "batch"]
"""Modes that compare different steps: with a discount, equal rewards are unequal returns of early and late steps."""
EPSILON = dict.fromkeys(MODES, 1e-6) | {"batch": 1e-8}  # official code
SIZES = [0.1, 1.0, 22.1, -22.1, 1e6, -1234567.0, 1e12, 1e-6, 1e-20, 0.0]
COUNTS = [1, 2, 3, 7, 16, 33]


def of(rewards, mode, gamma, *, sparse=False, epochs=1):
    """Advantages in the last of ``epochs`` equal epochs of one prompt, not clipped."""
    normaliser = Normaliser(mode)
    for _ in range(epochs):
        found = advantages(rewards, ["p"] * len(rewards), normaliser, gamma=gamma, clip=0, sparse=sparse)
    return found


# -- equal and nearly equal rewards ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_equal_rewards_have_no_advantage(mode, size):
    """verl #4598. Epochs 1 to 3: first the batch's statistics, then those of the prompt's buffer."""
    for count in COUNTS:
        for gamma in (0.0,) if mode in POOLED else (0.0, 0.9, 0.99, 1.0):
            for epochs in (1, 3):
                assert not of(torch.full((count, 2, 50), size), mode, gamma, epochs=epochs).any(), (count, gamma)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_equal_final_rewards_have_no_advantage(mode, size):
    rewards = torch.zeros(16, 2, 50)
    rewards[..., -1] = size
    assert not of(rewards, mode, 1.0, sparse=True, epochs=3).any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_returns_are_normalised_to_zero(mode, size, dtype):
    assert not Normaliser(mode)(torch.full((256, 1), size, dtype=dtype), ["p"] * 256).any()


@pytest.mark.parametrize("size", [0.1, 22.1, 1e6, 1e12])
@pytest.mark.parametrize("mode", MODES)
def test_neighbours_in_float32_are_equal(mode, size):
    """A scorer that gives 0.1 to one image and the next float32 number to another saw no difference."""
    low = np.float32(size)
    pair = torch.tensor([low, np.nextafter(low, np.float32(np.inf))])
    assert pair[0] < pair[1]
    rewards = pair.repeat(16)[:, None].expand(-1, 2)[..., None].repeat(1, 1, 50)
    rewards[:, 1] = rewards[:, 0].flip(0)
    for gamma in (0.0,) if mode in POOLED else (0.0, 0.99, 1.0):
        assert not of(rewards, mode, gamma, epochs=3).any(), gamma


@pytest.mark.parametrize("size", [0.1, 22.1, 1e6, 1e12])
@pytest.mark.parametrize("mode", MODES)
def test_rewards_that_differ_by_a_hundred_thousandth_differ(mode, size):
    """Rounding is a ten-millionth. The epsilon is 1e-6, so that the smallest difference here, 1e-6, counts a third."""
    rewards = torch.tensor([size, size * (1 + 1e-5)]).repeat(16)[:, None, None].expand(-1, 2, 1).clone()
    rewards[:, 1] = rewards[:, 0].flip(0)
    found = of(rewards, mode, 0.0)
    values = rewards.double().flatten()
    half = float(values.max() - values.min()) / 2
    expected = half / (half + EPSILON[mode]) * torch.where(values > values.mean(), 1.0, -1.0).view_as(found)
    assert torch.allclose(found, expected.float(), atol=1e-5)


def test_a_return_apart_from_a_buffer_of_equal_ones_keeps_its_advantage():
    """The buffer holds the last 2 of 3 returns, 1 and 1; the first is 3: (3 - 1) / (0 + 1e-6)."""
    found = Normaliser("per-step-prompt", buffer_size=2, min_count=2)(torch.tensor([[3.0], [1.0], [1.0]]), ["p"] * 3)
    assert found.flatten().tolist() == pytest.approx([2e6, 0.0, 0.0], rel=1e-6)


def test_only_the_prompt_and_step_that_do_not_vary_have_no_advantage():
    """Steps of cat: 22.1 always, and 1, 3; dog: 5, 9, and 0.1 always."""
    values = torch.tensor([[22.1, 1.0], [22.1, 3.0], [5.0, 0.1], [9.0, 0.1]])
    found = Normaliser("per-step-prompt", 32, 2)(values, ["cat", "cat", "dog", "dog"])
    assert found.flatten().tolist() == pytest.approx([0, -1, 0, 1, -1, 0, 1, 0], abs=2e-6)
    assert (found == 0).sum() == 4


def test_infinite_and_missing_rewards_are_not_hidden():
    """They are refused where they are scored; here they must not look like equal ones."""
    for bad in (float("nan"), float("inf")):
        with np.errstate(invalid="ignore"):
            assert not torch.isfinite(Normaliser("batch")(torch.tensor([[bad], [1.0], [1.0]]), ["p"] * 3)).all()


# -- dense rewards predicted from equal queries ------------------------------------------------------------------


@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 50),
    reward=st.floats(-1e6, 1e6, width=32),
    guard=st.sampled_from(["convex", "official"]),
)
@settings(max_examples=100, deadline=None)
def test_equal_queries_predict_equal_rewards(seed, steps, reward, guard):
    generator = torch.Generator().manual_seed(seed)
    queries = choose_queries(torch.randn(4, 2, steps, 1, 2, 2, generator=generator) + 0.5, "predicted")
    dense = predicted_rewards(queries, torch.full(queries.steps.shape, reward), guard)
    assert (dense == reward).all()
    assert dense.dtype == torch.float32


@given(seed=st.integers(0, 10_000), low=st.floats(-1e6, 1e6, width=32), spacings=st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_predictions_never_leave_the_queried_range(seed, low, spacings):
    """Not even by a rounding error."""
    high = np.float32(low)
    for _ in range(spacings):
        high = np.nextafter(high, np.float32(np.inf))
    generator = torch.Generator().manual_seed(seed)
    queries = choose_queries(torch.randn(4, 2, 12, 4, 2, 2, generator=generator), "predicted")
    rewards = torch.where(torch.rand(queries.steps.shape, generator=generator) < 0.5, low, float(high))
    dense = predicted_rewards(queries, rewards)
    assert (dense >= rewards.amin(-1, keepdim=True)).all()
    assert (dense <= rewards.amax(-1, keepdim=True)).all()


@pytest.mark.parametrize("guard", ["convex", "official"])
@pytest.mark.parametrize("size", SIZES)
def test_equal_queries_have_no_advantage(size, guard):
    """Each trajectory has similarities of its own."""
    queries = choose_queries(torch.randn(16, 2, 20, 4, 4, 4, generator=torch.Generator().manual_seed(0)), "predicted")
    dense = predicted_rewards(queries, torch.full(queries.steps.shape, size), guard)
    for mode in MODES:
        assert not of(dense, mode, 0.0 if mode in POOLED else 0.99, epochs=2).any(), mode


def test_a_similarity_sum_of_zero_is_still_no_number_with_the_official_guard():
    similarity = torch.tensor([[1.0, 0.0, 0.5], [0.5, -0.5, 0.0], [0.5, 0.0, 1.0], [0.0, 1.0, 0.5]])
    queries = Queries(torch.tensor([0, 3, 2]), similarity, 1)
    dense = predicted_rewards(queries, torch.tensor([1.0, 3.0, 2.0]), "official")
    assert torch.isfinite(dense).tolist() == [True, False, True, True]


# -- huge and tiny rewards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [0.0, 1.0, 1e6])
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e-3, 1.0, 1e6, 1e12])
@pytest.mark.parametrize("mode", MODES)
def test_huge_and_tiny_rewards_by_exact_arithmetic(mode, scale, shift):
    """Against Python's exact fractions, with the epsilon of the official code: spreads near it count less."""
    draw = torch.randn(16, 2, 1, generator=torch.Generator().manual_seed(3))
    rewards = (scale * draw.double() + shift * scale).float()
    found = of(rewards, mode, 0.0)
    samples = rewards[:, :, 0].tolist() if mode == "group" else [rewards.flatten().tolist()] * 16
    for sample, row, own in zip(samples, rewards[:, :, 0].tolist(), found[:, :, 0].tolist()):
        mean, std = statistics.mean(sample), statistics.pstdev(sample)
        expected = [0.0 if std < 2**-23 * abs(mean) else (v - mean) / (std + EPSILON[mode]) for v in row]
        assert own == pytest.approx(expected, rel=1e-6, abs=1e-12)


@given(
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 999),
    exponent=st.floats(-1, 9),
    shift=st.floats(-100, 100),
    gamma=st.sampled_from([0.0, 0.9, 0.99]),
    min_count=st.sampled_from([2, 16, 1000]),
)
@settings(max_examples=150, deadline=None)
def test_advantages_ignore_the_unit_and_the_zero_of_rewards(mode, seed, exponent, shift, gamma, min_count):
    """A(a R + b) = A(R) within 1e-4, for spreads s of R and a R in every sample of at least 0.1 (A changes by
    1e-6 A / s, the official epsilon) and shifts b of at most 100 a (float32 keeps 1e-5 of the spread of 100 + s)."""
    scale, gamma = 10**exponent, 0.0 if mode in POOLED else gamma
    draw = torch.rand(12, 6, 8, generator=torch.Generator().manual_seed(seed))
    rewards = torch.cat([draw, draw + 1.5, draw - 1.5]) if mode != "group" else torch.cat([draw, 3 + draw], 1)
    prompts = [f"p{i}" for i in range(12)] * (len(rewards) // 12)
    results = []
    for values in (rewards, (scale * rewards.double() + scale * shift).float()):
        normaliser = Normaliser(mode, 32, min_count)
        for _ in range(2):
            found = advantages(values, prompts, normaliser, gamma=gamma, clip=5, sparse=False)
        results.append(found)
    assert torch.allclose(*results, rtol=0, atol=1e-4)
    assert results[0].abs().max() > 0.5


# -- precision and state -----------------------------------------------------------------------------------------


def test_returns_are_summed_in_float64():
    """Fifty float32 rewards of 0.1 and gamma 0.99: 0.1 (1 - 0.99^50) / 0.01, to the digits that float64 has."""
    found = discounted_returns(torch.full((50,), 0.1), 0.99)
    assert found.dtype == torch.float64
    assert found[0].item() == pytest.approx(float(np.float32(0.1)) * (1 - 0.99**50) / 0.01, rel=1e-13)


def test_the_state_holds_returns_as_they_were_compared():
    """A restored normaliser gives the same bits: the buffers are float64, which float32 would round."""
    draw = lambda seed: torch.randn(32, 2, 5, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    give = lambda normaliser, seed: advantages(  # noqa: E731
        draw(seed), ["p"] * 32, normaliser, gamma=0.99, clip=5, sparse=False
    )
    first, second = Normaliser("per-step-prompt"), Normaliser("per-step-prompt")
    give(first, 0)
    state = first.state_dict()
    assert {rows.dtype for rows in state.values()} == {torch.float64}
    second.load_state_dict(state)
    assert torch.equal(give(first, 1), give(second, 1))
    assert all(torch.equal(first.state_dict()[p], rows) for p, rows in second.state_dict().items())


def test_float32_buffers_of_an_earlier_checkpoint_load():
    """Equal returns in both: the mixed buffer has no spread either."""
    normaliser = Normaliser("per-step-prompt", 32, 16)
    normaliser.load_state_dict({"p": torch.full((20, 1), 22.1)})
    assert normaliser.state_dict()["p"].dtype == torch.float64
    assert not normaliser(torch.full((4, 1), 22.1), ["p"] * 4).any()
    assert normaliser.state_dict()["p"].shape == (24, 1)
