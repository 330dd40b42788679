"""ReFL (reward feedback learning), Xu et al. 2023, arXiv 2304.05977 (ImageReward, section 4).

One of the last denoising steps is drawn for each image; its predicted original is decoded and scored, and the gradient
flows through that one step. The paper's second loss, on pairs of pre-training data, needs such data and is left out.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Le

from sdpo_bench.api import Backprop, Loss, Method, Minibatch


@dataclass(frozen=True)
class ReFLSettings:
    """Settings of ReFL's own."""

    window: Annotated[float, Gt(0), Le(1)] = 0.25
    """Share of the steps, the last ones, among which the differentiated step is drawn (official: 10 of 40)."""
    target: float | None = None
    """A reward at or above this teaches nothing (official: 2, in ImageReward's own unit); unset: every reward does."""


class ReFL(Method):
    """The reward's own gradient through one of the last denoising steps (ReFL; differentiable rewards only)."""

    formula = "mean -R or mean max(0, target - R), through one of the last steps (window), drawn for each image"
    source = "arXiv 2304.05977, section 4"
    Settings = ReFLSettings
    settings: ReFLSettings
    signal = "gradient"
    granularity = "trajectory"
    final_image = "predicted"
    defaults = {"update.order": "accumulated"}

    def backprop(self, num_steps: int) -> Backprop:
        steps = self.settings.window * num_steps
        return Backprop(depth=1, window=max(1, math.ceil(steps - 1e-9)))  # .14 x 50 gives 7.000000000000001

    def loss(self, batch: Minibatch) -> Loss:
        """mean phi(r), phi(r) = max(0, target - r), or -r without a target (ImageReward, Algorithm 1)."""
        target = self.settings.target
        if target is None:
            return Loss(-batch.final_rewards.mean())
        missing = (target - batch.final_rewards).clamp(min=0)
        return Loss(missing.mean(), {"target_reached": (missing == 0).float().mean()})
