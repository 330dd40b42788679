"""DRaFT (direct reward fine-tuning), Clark et al. 2023, arXiv 2309.17400: DRaFT-K (K = T: AlignProp, 2310.03739).

The gradient flows from the reward through the autoencoder and the last K denoising steps. The steps before them come
from the sampled trajectory, so K denoiser calls are made twice; the ledger has them.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from sdpo_bench.api import Backprop, Loss, Method, Minibatch


@dataclass(frozen=True)
class DRaFTSettings:
    """Settings of DRaFT's own."""

    steps: Annotated[int, Ge(1)] = 1
    """K: how many of the last denoising steps are differentiated (paper: 1; more need K times the memory)."""


class DRaFT(Method):
    """The reward's own gradient through the last K denoising steps (DRaFT-K; differentiable rewards only)."""

    formula = "mean -R, differentiated through the last K = steps denoising steps"
    source = "arXiv 2309.17400 (DRaFT-K); arXiv 2310.03739 (AlignProp, K = T)"
    Settings = DRaFTSettings
    settings: DRaFTSettings
    signal = "gradient"
    granularity = "trajectory"
    defaults = {"update.order": "accumulated"}

    def backprop(self, num_steps: int) -> Backprop:
        return Backprop(depth=self.settings.steps)

    def loss(self, batch: Minibatch) -> Loss:
        """mean -r(x_0(theta)), differentiated through steps T-K..T-1 (DRaFT, Algorithm 1)."""
        return Loss(-batch.final_rewards.mean())
