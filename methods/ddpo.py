"""DDPO (denoising diffusion policy optimisation), Black et al. 2023, arXiv 2305.13301; kvablack/ddpo-pytorch."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from sdpo_bench.api import Loss, Method, Minibatch


@dataclass(frozen=True)
class DDPOSettings:
    """Settings of DDPO's own."""

    clip_range: Annotated[float, Ge(0)] = 1e-4
    """PPO clip range of the importance ratio; 0: no clipping (official: 1e-4)."""


class DDPO(Method):
    """Clipped policy gradient with the final image's reward at every step (DDPO-IS)."""

    Settings = DDPOSettings
    settings: DDPOSettings
    defaults = {"update.order": "accumulated", "advantage.gamma": 1.0}

    def loss(self, batch: Minibatch) -> Loss:
        """mean max(-A rho, -A clip(rho, 1 - c, 1 + c)) (DDPO eq. 4 with PPO's clipping, as in the official code)."""
        assert batch.advantages is not None
        ratio = (batch.log_probs - batch.old_log_probs).exp()
        unclipped = -batch.advantages * ratio
        clip = self.settings.clip_range
        if clip == 0:
            return Loss(unclipped.mean())
        clipped = -batch.advantages * ratio.clamp(1 - clip, 1 + clip)
        fraction = ((ratio - 1).abs() > clip).float().mean()
        return Loss(unclipped.maximum(clipped).mean(), {"clip_fraction": fraction})
