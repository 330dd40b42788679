"""Reward-weighted regression, Peters & Schaal 2007; for diffusion models Lee et al. 2023, arXiv 2302.12192."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from sdpo_bench.api import Loss, Method, Minibatch


@dataclass(frozen=True)
class RewardWeightedSettings:
    """Settings of reward-weighted regression's own."""

    group_size: Annotated[int, Ge(2)] = 4
    """Images of one prompt that share out one unit of weight."""
    temperature: Annotated[float, Gt(0)] = 0.5
    """Rewards are divided by this before the softmax: the lower, the more the best image takes."""


class RewardWeighted(Method):
    """Raises the likelihood of each image by its share of the group's exponentiated reward."""

    formula = "- mean sum over the group of softmax(R / temperature) (lp - old)"
    source = "arXiv 2302.12192"
    Settings = RewardWeightedSettings
    settings: RewardWeightedSettings
    signal = "preference"
    defaults = {"update.order": "accumulated"}

    @property
    def members(self) -> int:
        return self.settings.group_size

    def loss(self, batch: Minibatch) -> Loss:
        """- sum over members of softmax(r / temperature) (log pi - log pi_old), mean over groups and steps."""
        weight = (batch.final_rewards / self.settings.temperature).softmax(1)
        log_ratio = batch.log_probs - batch.old_log_probs
        value = -(weight[..., None] * log_ratio).sum(1).mean()
        return Loss(value, {"largest_weight": weight.max(1).values.mean()})
