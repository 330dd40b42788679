"""Ask rewards for numbers: decode exactly the latents that are needed, score them once, check and charge every answer.

A reward is somebody else's code, so its answer is checked for shape and finiteness before anything learns from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_bench.api import Reward
from sdpo_bench.budget import Ledger
from sdpo_bench.dense import Queries
from sdpo_bench.errors import RunFailed
from sdpo_bench.policy import Policy
from sdpo_bench.rollout import Trajectories


class Scorer:
    """A reward under supervision: batches, validates, charges the ledger.

    Args:
        name: the reward's plugin name, as results and the ledger carry it.
        ledger: charged one reward call an image; ``None`` for evaluation, which is not part of the training bill.
    """

    def __init__(self, name: str, reward: Reward, ledger: Ledger | None = None):
        self.name = name
        self.reward = reward
        self.ledger = ledger

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[B]`` float32 on the CPU of images ``[B, 3, H, W]`` in [0, 1].

        Raises:
            RunFailed: images or scores that are not finite, or an answer of the wrong shape or type.
        """
        if not torch.isfinite(images).all():
            raise RunFailed("decoded images contain NaN or infinity: the policy has diverged. Lower update.lr.")
        with torch.no_grad():
            scores = self.reward(images, list(prompts))
        self._check(scores, len(prompts))
        if self.ledger is not None:
            self.ledger.charge_reward(self.name, len(prompts))
        return scores.detach().float().cpu()

    def differentiable(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores ``[B]`` whose graph reaches back to the images; charged as calls and as differentiated ones.

        Raises:
            RunFailed: as :meth:`__call__`, or a reward that declares a gradient and has none.
        """
        if not torch.isfinite(images).all():
            raise RunFailed("decoded images contain NaN or infinity: the policy has diverged. Lower update.lr.")
        scores = self.reward(images, list(prompts))
        self._check(scores, len(prompts))
        if not scores.requires_grad:
            raise RunFailed(f"reward '{self.name}' declares itself differentiable, but its scores carry no gradient.")
        if self.ledger is not None:
            self.ledger.charge_reward(self.name, len(prompts))
            self.ledger.reward_backward += len(prompts)
        return scores.float()

    def _check(self, scores: object, count: int) -> None:
        if not isinstance(scores, Tensor) or scores.shape != (count,):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise RunFailed(
                f"reward '{self.name}' returned {got} for {count} images; a tensor of shape ({count},) is due."
            )
        bad = (~torch.isfinite(scores)).sum().item()
        if bad:
            raise RunFailed(f"reward '{self.name}' returned {bad} scores of {count} that are NaN or infinite.")


@dataclass(frozen=True)
class Answers:
    """Rewards ``[N, G, Q]`` of the queried steps and the final images ``[N, G, 3, H, W]`` that were decoded."""

    rewards: Tensor
    final_images: Tensor


def ask_rewards(
    policy: Policy,
    trajectories: Trajectories,
    queries: Queries,
    scorer: Scorer,
    *,
    decode_sample: bool,
    micro_batch: int = 64,
) -> Answers:
    """Score the queried steps of every trajectory.

    Args:
        decode_sample: score the decoded sample instead of a predicted original; needs a single query, the last step.

    Members that share their first step share its predicted original, so it is decoded and scored once a group.
    """
    n, g, q = queries.steps.shape
    steps = queries.steps.cpu()
    owner = torch.arange(n * g).view(n, g, 1).expand(n, g, q).clone()
    if trajectories.shared_start and not decode_sample:
        first_member = (torch.arange(n) * g).view(n, 1, 1).expand(n, g, q)
        owner = torch.where(steps == 0, first_member, owner)
    keys = owner * trajectories.num_steps + steps
    unique, inverse = keys.flatten().unique(return_inverse=True)
    rows, at = unique // trajectories.num_steps, unique % trajectories.num_steps
    scores, images = _score_rows(policy, trajectories, rows, at, scorer, decode_sample, micro_batch)
    last = inverse.view(n, g, q)[..., _last_query(q)]
    return Answers(scores[inverse].view(n, g, q), images[last.flatten()].view(n, g, *images.shape[1:]))


def _last_query(count: int) -> int:
    """Column of the last step among the queries: (first, last, anchor) for three, else the final column."""
    return 1 if count == 3 else count - 1


def _score_rows(
    policy: Policy,
    trajectories: Trajectories,
    rows: Tensor,
    steps: Tensor,
    scorer: Scorer,
    decode_sample: bool,
    micro_batch: int,
) -> tuple[Tensor, Tensor]:
    """Scores ``[U]`` and images ``[U, 3, H, W]`` (CPU) of trajectory ``rows`` at ``steps``."""
    members = trajectories.latents.shape[1]
    source = trajectories.latents[:, :, -1] if decode_sample else trajectories.x0
    flat = source.flatten(0, 1)
    scores, images = [], []
    for part in torch.arange(len(rows)).split(micro_batch):
        picked = flat[rows[part]] if decode_sample else flat[rows[part], steps[part]]
        with torch.no_grad():
            decoded = policy.decode(picked)
        prompts = [trajectories.prompts[row] for row in (rows[part] // members).tolist()]
        scores.append(scorer(decoded, prompts))
        images.append(decoded.cpu())
    return torch.cat(scores), torch.cat(images)
