"""DPOK (policy gradient with KL regularisation), Fan et al. 2023, arXiv 2305.16381; code google-research/dpok.

The official code (train_online_pg.py) subtracts a learned value of the state, draws steps from a replay buffer of 1000
and clamps the ratio on both sides, whatever the sign of the advantage. Here the baseline is that of all methods, an
epoch learns from its own samples, and the ratio is clipped as in PPO.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sdpo_bench.api import Loss, Method, Minibatch
from sdpo_bench.methods.ddpo import DDPOSettings, clipped_policy_gradient


@dataclass(frozen=True)
class DPOKSettings(DDPOSettings):
    """Settings of DPOK's own."""

    kl_weight: Annotated[float, Gt(0)] = 0.01
    """beta/alpha: weight of the KL to the base model, in advantages per nat and latent element. Official: 0.01 beside
    rewards times 100, and of the mean squared difference of predicted noises e. The KL of a DDIM step is 0.07 to 0.6
    times that at 50 steps (the last one 10), 1.4 to 3.6 times at 5 (the last one 190). Steps of weight 0
    (update.step_weight) are outside the penalty."""


class DPOK(Method):
    """Clipped policy gradient of the final reward, held to the base model by a KL penalty (DPOK)."""

    formula = "PG(A, c) + kl_weight KL(policy, base) of each trained step"
    source = "arXiv 2305.16381; code google-research/dpok"
    Settings = DPOKSettings
    settings: DPOKSettings
    needs_kl = True
    defaults = {"update.order": "accumulated", "advantage.gamma": 1.0}

    def loss(self, batch: Minibatch) -> Loss:
        """Mean over steps of the clipped -A rho, plus kl_weight KL(pi || pi_base) of each (DPOK, Algorithm 1)."""
        assert batch.advantages is not None and batch.kl is not None
        gain = clipped_policy_gradient(
            batch.advantages, batch.log_probs - batch.old_log_probs, self.settings.clip_range
        )
        kl = batch.kl.mean()
        return Loss(gain.value + self.settings.kl_weight * kl, {**gain.metrics, "kl_penalty": kl.detach()})
