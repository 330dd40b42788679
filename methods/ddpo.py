"""DDPO (denoising diffusion policy optimisation), Black et al. 2023, arXiv 2305.13301; kvablack/ddpo-pytorch.

Its learning rate is that of the official code for an adapter (config/base.py: 3e-4).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from sdpo_bench.api import Loss, Method, Minibatch, StepRewardSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class DDPOSettings(StepRewardSettings):
    """Settings of DDPO's own."""

    clip_range: Annotated[float, Ge(0)] = 1e-4
    """PPO clip range of the importance ratio; 0: no clipping (official: 1e-4)."""


def clipped_policy_gradient(advantages: "Tensor", log_ratio: "Tensor", clip_range: float) -> Loss:
    """mean max(-A rho, -A clip(rho, 1 - c, 1 + c)), rho = exp(log_ratio) (PPO, arXiv 1707.06347, eq. 7)."""
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    if clip_range == 0:
        return Loss(unclipped.mean())
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    fraction = ((ratio - 1).abs() > clip_range).float().mean()
    return Loss(unclipped.maximum(clipped).mean(), {"clip_fraction": fraction})


class DDPO(Method):
    """Clipped policy gradient with the final image's reward at every step (DDPO-IS)."""

    formula = "PG(A, c); the final image's reward at every step, c = clip_range"
    source = "arXiv 2305.13301, eq. 4, with the clipping of PPO (arXiv 1707.06347, eq. 7); code kvablack/ddpo-pytorch"
    Settings = DDPOSettings
    settings: DDPOSettings
    defaults = {"update.order": "accumulated", "update.lr": 3e-4, "advantage.gamma": 1.0}

    def loss(self, batch: Minibatch) -> Loss:
        """mean max(-A rho, -A clip(rho, 1 - c, 1 + c)) (DDPO eq. 4 with PPO's clipping, as in the official code)."""
        assert batch.advantages is not None
        log_ratio = batch.log_probs - batch.old_log_probs
        return clipped_policy_gradient(batch.advantages, log_ratio, self.settings.clip_range)
