"""TDPO (temporal diffusion policy optimisation), Zhang et al. 2024, arXiv 2402.08552; code ZiyiZhang27/tdpo.

A critic V learns what final reward a denoising state leads to; a step's temporal reward is what the trajectory brought
beyond it, and policy and critic are updated at every single step. The official critic reads image features of decoded
states; this one reads the latents themselves, so that no state is decoded for it. The neuron resets of TDPO-R and the
second normalisation of temporal rewards over a batch are left out.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from sdpo_bench.api import Critic, Loss, Method, Minibatch, StepRewardSettings
from sdpo_bench.methods.ddpo import clipped_policy_gradient


@dataclass(frozen=True)
class TDPOSettings(StepRewardSettings):
    """Settings of TDPO's own."""

    clip_range: Annotated[float, Ge(0)] = 1e-4
    """PPO clip range of the importance ratio; 0: no clipping (official: 1e-4)."""
    critic_clip_range: Annotated[float, Ge(0)] = 0.2
    """How far an epoch may move the critic's answer for a state, in advantages; 0: any distance (official: 0.2)."""
    critic_lr: Annotated[float, Gt(0)] = 1e-4
    """AdamW learning rate of the critic (official: 1e-4)."""


class TDPO(Method):
    """Clipped policy gradient of temporal rewards from a learned critic, updated at every single step (TDPO)."""

    formula = (
        "PG(A - V_old, c) + mean max((V - A)^2, (clip(V, V_old +- c_V) - A)^2) / 2; V a critic of latents and step"
    )
    source = "arXiv 2402.08552; code ZiyiZhang27/tdpo"
    Settings = TDPOSettings
    settings: TDPOSettings
    defaults = {"update.order": "step-shuffled", "advantage.gamma": 1.0}

    def critic(self, latent_shape: tuple[int, int, int], num_steps: int) -> Critic:
        from sdpo_bench.methods._temporal_critic import TemporalCritic

        return Critic(TemporalCritic(latent_shape[0], num_steps), self.settings.critic_lr)

    def loss(self, batch: Minibatch) -> Loss:
        """PPO's loss with A - V_old as advantage, plus mean max((V - A)^2, (clip(V, V_old +- c) - A)^2) / 2."""
        assert batch.advantages is not None and batch.values is not None and batch.old_values is not None
        log_ratio = batch.log_probs - batch.old_log_probs
        gain = clipped_policy_gradient(batch.advantages - batch.old_values, log_ratio, self.settings.clip_range)
        error = (batch.values - batch.advantages) ** 2
        metrics = {**gain.metrics, "critic_error": error.detach().mean()}
        clip = self.settings.critic_clip_range
        if clip > 0:
            near = batch.old_values + (batch.values - batch.old_values).clamp(-clip, clip)
            error = error.maximum((near - batch.advantages) ** 2)
        return Loss(gain.value + error.mean() / 2, metrics)
