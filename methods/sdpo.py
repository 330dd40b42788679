"""SDPO (stepwise diffusion policy optimisation), arXiv 2411.11727; official code ZiyiZhang27/sdpo."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from sdpo_bench.api import Loss, Method, Minibatch, RewardGuard, RewardMode


@dataclass(frozen=True)
class SDPOSettings:
    """Settings of SDPO's own."""

    reward: Literal["predicted", "full", "sparse"] = "predicted"
    """Dense rewards predicted from three queries (paper), queried at every step, or the last one alone."""
    guard: RewardGuard = "convex"
    """Where similarity weights are negative: keep predicted rewards in range, or the published arithmetic."""
    clip_range: Annotated[float, Ge(0)] = 1e-4
    """Log-ratios are clamped to this magnitude in the second branch of the loss; 0: no clipping (official: 1e-4)."""
    temporal_discount: Annotated[float, Gt(0), Le(1)] = 0.99
    """lambda: step i weighs lambda^i, so that i = 0 weighs most (official: 0.99)."""
    log_scale: Annotated[float, Gt(0)] = 1.0
    """Divides the log-ratio difference: the paper's eta (official: 1)."""


class SDPO(Method):
    """Dense reward difference learning on trajectory pairs with step-shuffled updates (SDPO)."""

    Settings = SDPOSettings
    settings: SDPOSettings
    members = 2
    shared_noise = True
    final_image = "predicted"

    @property
    def reward_mode(self) -> RewardMode:
        return self.settings.reward

    @property
    def reward_guard(self) -> RewardGuard:
        return self.settings.guard

    def loss(self, batch: Minibatch) -> Loss:
        """mean max(u, c), u = (w (r_a - r_b) - (A_a - A_b))^2, c the same with both r clamped (paper, eq. 13)."""
        assert batch.advantages is not None
        weight = self.settings.temporal_discount**batch.steps / self.settings.log_scale
        log_ratio = batch.log_probs - batch.old_log_probs
        target = batch.advantages[:, 0] - batch.advantages[:, 1]
        unclipped = (weight * (log_ratio[:, 0] - log_ratio[:, 1]) - target) ** 2
        clip = self.settings.clip_range
        if clip == 0:
            return Loss(unclipped.mean())
        near = log_ratio.clamp(-clip, clip)
        clipped = (weight * (near[:, 0] - near[:, 1]) - target) ** 2
        fraction = (clipped > unclipped).float().mean()
        return Loss(unclipped.maximum(clipped).mean(), {"clip_fraction": fraction})
