"""REBEL, Gao et al. 2024, arXiv 2404.16767; for diffusion models PRDP, Deng et al. 2024, arXiv 2402.08714.

A trajectory's log-likelihood ratio is the sum over its steps. The engine differentiates it with one step's graph in
memory at a time.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from sdpo_bench.api import Loss, Method, Minibatch, StepRewardSettings

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RebelSettings(StepRewardSettings):
    """Settings of REBEL's own."""

    log_scale: Annotated[float, Gt(0)] = 1.0
    """eta: divides the log-ratio difference (REBEL, Algorithm 1). Log-ratios here are means over latent elements."""
    clip_range: Annotated[float, Ge(0)] = 0.0
    """PRDP's proximal update: every step's log-ratio is clamped to this magnitude in a second branch of the loss, of
    which the larger counts (PRDP, proximal updates); 0: none, which is REBEL."""


class Rebel(Method):
    """Regression of a pair's log-ratio difference on its reward difference, whole trajectories (REBEL, PRDP)."""

    formula = (
        "mean max(u, u_c); u = (sum_i (r_a,i - r_b,i) / eta - (A_a - A_b))^2; u_c (PRDP) only where clip_range > 0"
    )
    source = "arXiv 2404.16767, Algorithm 1 (REBEL); arXiv 2402.08714 (PRDP)"
    Settings = RebelSettings
    settings: RebelSettings
    members = 2
    shared_noise = True
    granularity = "trajectory"
    defaults = {"update.order": "accumulated", "advantage.gamma": 1.0}

    def loss(self, batch: Minibatch) -> Loss:
        """mean max(u, c), u = ((1/eta) sum_i (r_a,i - r_b,i) - (A_a - A_b))^2, c the same with every r_i clamped.

        A is the normalised return of the whole trajectory, which is that of its first step.
        """
        assert batch.advantages is not None
        log_ratio = batch.log_probs - batch.old_log_probs
        target = batch.advantages[:, 0, 0] - batch.advantages[:, 1, 0]
        unclipped = self._squared_error(log_ratio, target)
        clip = self.settings.clip_range
        if clip == 0:
            return Loss(unclipped.mean())
        clipped = self._squared_error(log_ratio.clamp(-clip, clip), target)
        fraction = (clipped > unclipped).float().mean()
        return Loss(unclipped.maximum(clipped).mean(), {"clip_fraction": fraction})

    def _squared_error(self, log_ratio: "Tensor", target: "Tensor") -> "Tensor":
        total = log_ratio.sum(-1) / self.settings.log_scale
        return (total[:, 0] - total[:, 1] - target) ** 2
