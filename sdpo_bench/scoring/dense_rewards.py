"""Dense rewards: a reward for every denoising step, predicted from a few queried ones by latent similarity.

SDPO (arXiv 2411.11727, section "dense reward prediction") queries the reward of the decoded predicted originals at
three steps (first, anchor, last) and fills the others by a similarity-weighted mean. ``full`` queries every step,
``sparse`` only the last: both are the ablations of the same interface.

The other modes ask where a state leads without further noise (``sampling.completions``), R_i from the state before
step i, R_n the final reward. They cost about T^2 / 2 denoiser calls an image:

- ``completion`` (DenseGRPO, arXiv 2601.20218): a step's reward is its gain R_{i+1} - R_i.
- ``turning-point`` (TP-GRPO, arXiv 2602.06422): the same, but a step that turns the reward towards where the whole
  trajectory goes, after one that led away from it, gets all that follows from there: R_n - R_i.
- ``branch`` (after TempFlow-GRPO, arXiv 2508.04324): R_{i+1} minus the group's mean of R_{i+1}. The paper branches all
  members from one state; in stored trajectories they are in states of their own, whose differences are in here too.
  Its own form is a single random step (flow models: ``schedule.sde_steps=random:1``) with ``sparse`` rewards.

Rewards of the last two do not add up to returns (``config.reward_modes.check_discount``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_bench.api import COMPLETED_MODES, RewardGuard, RewardMode


@dataclass(frozen=True)
class Queries:
    """Which steps are scored, and how much each scored step says about every step.

    Attributes:
        steps: int64 ``[..., Q]``; Q = 3 as (first, last, anchor), 2 where no inner step exists (T = 2), 1 for T = 1.
        similarity: ``[..., T, Q]`` cosine similarity of each step's predicted original to that of the queried step.
        last: which of the Q is the last step, whose score is the final image's.
    """

    steps: Tensor
    similarity: Tensor
    last: int


def choose_queries(x0: Tensor, mode: RewardMode) -> Queries:
    """Queried steps of trajectories with predicted originals ``x0 [..., T, C, h, w]``."""
    flat = x0.flatten(-3)
    lead, num_steps = flat.shape[:-2], flat.shape[-2]
    if mode == "full":
        return _fixed(list(range(num_steps)), flat)
    if mode == "sparse" or num_steps == 1:
        return _fixed([num_steps - 1], flat)
    if num_steps == 2:
        return _fixed([0, 1], flat)
    ends = _fixed([0, num_steps - 1], flat)
    anchor = anchor_step(ends.similarity[..., 0], ends.similarity[..., 1])
    anchor_latent = flat.gather(-2, anchor[..., None, None].expand(*lead, 1, flat.shape[-1]))
    to_anchor = torch.cosine_similarity(flat, anchor_latent, dim=-1)
    return Queries(
        torch.cat([ends.steps, anchor[..., None]], -1),
        torch.cat([ends.similarity, to_anchor[..., None]], -1),
        ends.last,
    )


def _fixed(steps: list[int], flat: Tensor) -> Queries:
    similarity = torch.stack([torch.cosine_similarity(flat, flat[..., i : i + 1, :], dim=-1) for i in steps], -1)
    index = torch.tensor(steps, device=flat.device).expand(*flat.shape[:-2], len(steps))
    return Queries(index, similarity, len(steps) - 1)


def anchor_step(to_first: Tensor, to_last: Tensor) -> Tensor:
    """The inner step least similar to both ends: argmin of ``to_first + to_last`` over steps 1..T-2, earliest on ties.

    The official argmin runs over all steps, where the first and the last always tie in exact arithmetic, so that
    rounding may pick one of them; an end is never an anchor here.

    Args:
        to_first, to_last: cosine similarities ``[..., T]``, T >= 3.

    Returns:
        int64 ``[...]``.
    """
    inner = (to_first + to_last)[..., 1:-1]
    lowest = inner.min(-1, keepdim=True).values
    return (inner == lowest).int().argmax(-1) + 1


def predicted_rewards(queries: Queries, rewards: Tensor, guard: RewardGuard = "convex") -> Tensor:
    """Reward of every step: ``r_i = sum_q R_q s_qi / sum_q s_qi``, queried steps keeping their exact reward.

    Cosines can be negative, and then the official weights leave [0, 1] and their sum may vanish (rewards of -106
    from queries between 2 and 9 were seen). ``convex`` sets negative similarities to 0, and uses equal weights where
    none is positive: where all are positive it equals the official formula, elsewhere a predicted reward stays within
    the range of the queried ones. ``official`` reproduces the published arithmetic, NaN included. Sums are float64, so
    that equal queried rewards give exactly equal rewards at all steps and not ones that differ in their last digits.

    Args:
        rewards: ``[..., Q]`` of the queried steps, in the order of ``queries.steps``.

    Returns:
        ``[..., T]``, dtype and device of ``rewards``.
    """
    weights = queries.similarity.cpu()  # some devices have no float64
    if guard == "convex":
        weights = weights.nan_to_num(0.0).clamp(min=0)
        weights = torch.where(weights.sum(-1, keepdim=True) > 1e-6, weights, torch.ones_like(weights))
    weights = weights.double()
    dense = ((rewards.cpu().double()[..., None, :] * weights).sum(-1) / weights.sum(-1)).to(rewards)
    # Official order of overwriting: first, last, then the anchor wins.
    for q in range(queries.steps.shape[-1]):
        dense = dense.scatter(-1, queries.steps[..., q : q + 1], rewards[..., q : q + 1])
    return dense


def step_rewards(queries: Queries, rewards: Tensor, mode: RewardMode, guard: RewardGuard = "convex") -> Tensor:
    """Rewards ``[..., T]`` in the given mode; ``sparse`` gives the last step its reward and the others 0."""
    if mode == "sparse":
        shape = (*queries.similarity.shape[:-1],)
        return torch.zeros(shape, dtype=rewards.dtype, device=rewards.device).index_copy(
            -1, torch.tensor([shape[-1] - 1], device=rewards.device), rewards
        )
    return predicted_rewards(queries, rewards, guard)


def completion_rewards(scores: Tensor, steps: Sequence[int], num_steps: int, mode: RewardMode) -> Tensor:
    """Rewards ``[N, G, T]`` of the steps that draw noise, from the scores of completions; 0 for all other steps.

    Args:
        scores: ``[N, G, S + 1]`` of the states before each of the ``steps``, then the final reward; in the mode
            ``branch`` ``[N, G, S]``, without the first state.
        steps: the S steps whose noise changes the final picture, ascending.
    """
    exact = scores.cpu().double()
    if mode == "branch":
        values = exact - exact.mean(1, keepdim=True)
    else:
        values = exact.diff(dim=-1)
        if mode == "turning-point":
            to_the_end = exact[..., -1:] - exact[..., :-1]
            values = torch.where(turning_points(values), to_the_end, values)
    rewards = torch.zeros(*scores.shape[:-1], num_steps, dtype=torch.float64)
    rewards[..., list(steps)] = values
    return rewards.to(scores)


def turning_points(gains: Tensor) -> Tensor:
    """Bool ``[..., S]``: steps that gain in the direction of the sum of all ``gains``, after one that lost."""
    towards = gains.sign() * gains.sum(-1, keepdim=True).sign()
    turns = (towards[..., 1:] > 0) & (towards[..., :-1] < 0)
    return torch.cat([torch.zeros_like(gains[..., :1], dtype=torch.bool), turns], -1)


def final_rewards(queried: Tensor, rewards: Tensor, mode: str) -> Tensor:
    """Reward ``[..., G]`` of the final image: the last score of completions, else that of the last step."""
    return queried[..., -1] if mode in COMPLETED_MODES else rewards[..., -1]
