"""Dense rewards at T = 1, 2, 3, the anchor's tie rule, and predictions that stay in the range of what was asked."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_bench.advantages.normalise import Normaliser, advantages, discounted_returns
from sdpo_bench.scoring.dense_rewards import (
    Queries,
    anchor_step,
    choose_queries,
    completion_rewards,
    predicted_rewards,
    step_rewards,
    turning_points,
)


def latents(*shape, seed=0):
    return torch.randn(*shape, 4, 2, 2, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("steps", "queried"), [(1, [0]), (2, [0, 1]), (3, [0, 2, 1])])
def test_few_steps_ask_few_questions(steps, queried):
    """The official code raises an IndexError at T = 1; two queries suffice at T = 2; at T = 3 the anchor is step 1."""
    queries = choose_queries(latents(5, 2, steps), "predicted")
    assert queries.steps.tolist() == [[queried] * 2] * 5
    rewards = torch.arange(5 * 2 * len(queried)).view(5, 2, -1).float()
    dense = predicted_rewards(queries, rewards)
    for q, step in enumerate(queried):
        assert torch.equal(dense[..., step], rewards[..., q])


def test_full_and_sparse_modes():
    x0 = latents(2, 1, 4)
    full = choose_queries(x0, "full")
    rewards = torch.randn(2, 1, 4)
    assert torch.equal(step_rewards(full, rewards, "full"), rewards)
    sparse = choose_queries(x0, "sparse")
    assert sparse.steps.tolist() == [[[3]], [[3]]]
    assert step_rewards(sparse, rewards[..., -1:], "sparse")[..., :-1].abs().max() == 0
    assert torch.equal(step_rewards(sparse, rewards[..., -1:], "sparse")[..., -1], rewards[..., -1])


def test_the_anchor_is_an_inner_step_and_the_earliest_of_equals():
    first = torch.tensor([1.0, 0.9, 0.2, 0.2, 0.0])
    last = torch.tensor([0.0, 0.1, 0.2, 0.2, 1.0])
    assert anchor_step(first, last) == 2
    # All steps alike: every sum ties, the ends included.
    assert anchor_step(torch.ones(5), torch.ones(5)) == 1


def test_a_hand_computed_prediction():
    """r_1 = (1 * .5 + 3 * .25 + 2 * .25) / 1 = 1.75 for rewards 1 (first), 3 (last), 2 (anchor at step 2)."""
    similarity = torch.tensor([[1.0, 0.1, 0.2], [0.5, 0.25, 0.25], [0.2, 0.2, 1.0], [0.1, 1.0, 0.2]])
    queries = Queries(torch.tensor([0, 3, 2]), similarity, 1)
    dense = predicted_rewards(queries, torch.tensor([1.0, 3.0, 2.0]))
    assert dense.tolist() == pytest.approx([1.0, 1.75, 2.0, 3.0])


def test_negative_and_small_similarities_by_hand():
    """Rewards 1, 3, 2 again. Negative weights count as 0, small ones as what they are; without any all count alike."""
    inner = [([0.5, -0.5, 0.25], 4 / 3), ([0.01, 0.02, 0.01], 2.25), ([-0.5, -0.1, -0.2], 2.0), ([0.0, 0.0, 0.0], 2.0)]
    for weights, expected in inner:
        similarity = torch.tensor([[1.0, 0.1, 0.2], weights, [0.2, 0.2, 1.0], [0.1, 1.0, 0.2]])
        dense = predicted_rewards(Queries(torch.tensor([0, 3, 2]), similarity, 1), torch.tensor([1.0, 3.0, 2.0]))
        assert dense.tolist() == pytest.approx([1.0, expected, 2.0, 3.0]), weights


@given(seed=st.integers(0, 10_000), steps=st.integers(1, 12), scale=st.floats(1e-3, 1e3), zero=st.booleans())
@settings(max_examples=150, deadline=None)
def test_predictions_stay_within_the_queried_rewards(seed, steps, scale, zero):
    """Random latents have negative similarities, zero vectors have none: the official formula leaves the range."""
    x0 = latents(3, 2, steps, seed=seed)
    if zero:
        x0[:, :, steps // 2] = 0
    queries = choose_queries(x0, "predicted")
    rewards = scale * torch.randn(queries.steps.shape, generator=torch.Generator().manual_seed(seed + 1))
    dense = predicted_rewards(queries, rewards)
    slack = 1e-5 * scale
    assert torch.isfinite(dense).all()
    assert (dense <= rewards.amax(-1, keepdim=True) + slack).all()
    assert (dense >= rewards.amin(-1, keepdim=True) - slack).all()


def test_returns_by_hand():
    """G = (1 + .5 (2 + .5 * 4), 2 + .5 * 4, 4)."""
    assert discounted_returns(torch.tensor([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]
    assert discounted_returns(torch.tensor([1.0, 2.0, 4.0]), 0.0).tolist() == [1.0, 2.0, 4.0]


@given(
    mode=st.sampled_from(["per-step-prompt", "per-prompt", "per-step", "batch"]),
    shift=st.floats(-50, 50),
    scale=st.floats(0.1, 20),
    seed=st.integers(0, 999),
)
@settings(max_examples=80, deadline=None)
def test_normalised_advantages_ignore_the_rewards_unit(mode, shift, scale, seed):
    values = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)).double()
    prompts = ["cat", "dog"] * 4
    plain = Normaliser(mode, 32, 2)(values, prompts)
    moved = Normaliser(mode, 32, 2)(values * scale + shift, prompts)
    assert torch.allclose(plain, moved, atol=1e-3)


def test_modes_by_hand():
    """Values 1, 3 (cat) and 5, 9 (dog) at one step: what each mode subtracts and divides by."""
    values, prompts = torch.tensor([[1.0], [3.0], [5.0], [9.0]]), ["cat", "cat", "dog", "dog"]
    by_prompt = Normaliser("per-step-prompt", 32, 2)(values, prompts).flatten().tolist()
    assert by_prompt == pytest.approx([-1, 1, -1, 1], abs=1e-5)
    overall = Normaliser("batch")(values, prompts).flatten()  # mean 4.5, population std sqrt(8.75)
    assert overall.tolist() == pytest.approx([(v - 4.5) / 8.75**0.5 for v in (1, 3, 5, 9)], abs=1e-5)
    assert Normaliser("none")(values, prompts).tolist() == values.tolist()
    few = Normaliser("per-step-prompt", 32, 3)(values, prompts)  # fewer than 3 of a prompt: the batch's statistics
    assert torch.allclose(few.flatten(), overall, atol=1e-5)


def test_modes_by_hand_at_two_steps():
    """The second step's values are ten times the first's: what keeps steps apart sees no difference between them."""
    first, prompts = [1.0, 3.0, 5.0, 9.0], ["cat", "cat", "dog", "dog"]
    values = torch.tensor([[v, 10 * v] for v in first])
    mode = lambda name: Normaliser(name, 32, 2)(values, prompts).tolist()  # noqa: E731
    for found in (mode("per-step-prompt"), mode("group")):
        assert [x for row in found for x in row] == pytest.approx([-1, -1, 1, 1] * 2, abs=1e-5)
    by_step = [(v - 4.5) / 8.75**0.5 for v in first for _ in range(2)]
    assert [x for row in mode("per-step") for x in row] == pytest.approx(by_step, abs=1e-5)
    # cat: 1, 10, 3, 30 have mean 11 and population variance 131.5; dog: 5, 50, 9, 90 have 38.5 and 1194.25.
    cat, dog = [(v - 11) / 131.5**0.5 for v in (1, 10, 3, 30)], [(v - 38.5) / 1194.25**0.5 for v in (5, 50, 9, 90)]
    assert [x for row in mode("per-prompt") for x in row] == pytest.approx(cat + dog, abs=1e-5)


def test_buffers_survive_a_round_trip_of_their_state():
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(6, 3, generator=generator)  # noqa: E731
    prompts = ["cat", "dog", "cat", "dog", "cat", "émü"]
    first = Normaliser("per-step-prompt", 4, 2)
    first(draw(), prompts)
    second = Normaliser("per-step-prompt", 4, 2)
    second.load_state_dict(first.state_dict())
    values = draw()
    assert torch.equal(first(values, prompts), second(values, prompts))


def test_a_sparse_reward_gives_every_step_the_same_advantage():
    rewards = torch.zeros(3, 2, 4)
    rewards[..., -1] = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    result = advantages(rewards, ["a", "b", "c"], Normaliser("batch"), gamma=1.0, clip=5.0, sparse=True)
    assert (result == result[..., :1]).all()
    clipped = advantages(rewards, ["a", "b", "c"], Normaliser("batch"), gamma=1.0, clip=0.1, sparse=True)
    assert clipped.abs().max() == pytest.approx(0.1)


def test_a_sparse_reward_that_is_discounted_differs_from_step_to_step():
    rewards = torch.tensor([[[0.0, 0.0, 8.0]]])
    result = advantages(rewards, ["a"], Normaliser("none"), gamma=0.5, clip=0.0, sparse=True)
    assert result.tolist() == [[[2.0, 4.0, 8.0]]]


def test_what_is_added_to_standard_deviations():
    """Values 0 and 2e-6 have the standard deviation 1e-6, so that the official constants show."""
    values, prompts = torch.tensor([[0.0], [2e-6]], dtype=torch.float64), ["cat", "cat"]
    for mode, epsilon in (("batch", 1e-8), ("group", 1e-6), ("per-step", 1e-6), ("per-step-prompt", 1e-6)):
        found = Normaliser(mode, 32, 2)(values, prompts).flatten().tolist()
        assert found == pytest.approx([-1e-6 / (1e-6 + epsilon), 1e-6 / (1e-6 + epsilon)], rel=1e-9), mode


SCORES = torch.tensor([[[1.0, 3.0, 2.0, 5.0], [1.0, 0.0, 2.0, 2.5]]])
"""Of two members: the completions of their common start and of two later states, and the final reward."""


def test_gains_of_completions_by_hand():
    gains = completion_rewards(SCORES, [0, 1, 2], 4, "completion")
    assert gains.tolist() == [[[2, -1, 3, 0], [-1, 2, 0.5, 0]]]
    assert torch.equal(completion_rewards(SCORES, [1, 3, 4], 5, "completion")[..., [1, 3, 4]], gains[..., :3])


def test_a_turning_point_gets_all_that_follows_from_it():
    """First member: 2, -1, 3 of 4 in all; step 2 turns, and nothing but its own gain follows. Second: -1, 2, .5 of 1.5;
    step 1 turns and gets 2.5. A member that falls turns where it begins to fall again."""
    assert completion_rewards(SCORES, [0, 1, 2], 3, "turning-point").tolist() == [[[2, -1, 3], [-1, 2.5, 0.5]]]
    falling = completion_rewards(-SCORES, [0, 1, 2], 3, "turning-point")
    assert falling.tolist() == [[[-2, 1, -3], [1, -2.5, -0.5]]]
    one = completion_rewards(SCORES[..., 2:], [0], 3, "turning-point")
    assert one.tolist() == [[[3, 0, 0], [0.5, 0, 0]]]


def test_branches_are_compared_with_the_group_after_the_same_step():
    found = completion_rewards(SCORES[..., 1:], [0, 1, 2], 3, "branch")
    assert found.tolist() == [[[1.5, 0, 1.25], [-1.5, 0, -1.25]]]


def test_turning_points_follow_the_rule_of_signs():
    gains = torch.tensor([[-1.0, 2.0, -0.5, 1.0], [1.0, -2.0, 0.5, -1.0], [1.0, 2.0, 0.0, 3.0], [-1.0, 1.0, 0.0, 0.0]])
    assert turning_points(gains).tolist() == [
        [False, True, False, True],
        [False, True, False, True],
        [False] * 4,
        [False] * 4,  # nothing gained in all: no direction
    ]
