"""GRPO for diffusion: DanceGRPO, Xue et al. 2025, arXiv 2505.07818, and Flow-GRPO, Liu et al. 2025, arXiv 2505.05470.

The sampler is the engine's, of diffusion models stochastic DDIM (with eta 1 the reverse SDE of a diffusion), as
in DanceGRPO's code for Stable Diffusion. That code does not train the last step (here ``update.step_weight =
skip-last``) and divides by the group's unbiased standard deviation. Flow-GRPO is of flow-matching models alone.
Group-relative advantages are the engine's ``advantage.normalisation = group``.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from sdpo_bench.api import Added, Loss, Method, Minibatch, RewardMode, StepRewardSettings
from sdpo_bench.methods.ddpo import clipped_policy_gradient


@dataclass(frozen=True)
class GRPOSettings(StepRewardSettings):
    """Settings of GRPO's own."""

    group_size: Annotated[int, Ge(2)] = 8
    """G: images of one prompt that are compared with each other (DanceGRPO: 12, Flow-GRPO: 24)."""
    shared_noise: bool = True
    """Whether they start from the same initial noise (DanceGRPO: yes, Flow-GRPO: no)."""
    clip_range: Annotated[float, Ge(0)] = 1e-4
    """PPO clip range of the importance ratio; 0: no clipping (DanceGRPO: 1e-4)."""
    kl_weight: Annotated[float, Ge(0)] = 0.0
    """Weight of the KL to the base model (DanceGRPO: none); 0 computes none. Flow-GRPO has 0.01 to 0.04, of a KL whose
    variance lacks the step size |dt|: 4 to 25 times smaller than this one at ten steps of SD3.5. Steps of weight 0
    (update.step_weight) are outside the penalty."""
    ratio: Added[Literal["plain", "guard"]] = "plain"
    """Importance ratio: ``exp(log-ratio)``, or GRPO-Guard's (arXiv 2510.22319) ``exp(std (log-ratio + drift))``, which
    is centred at 1 and equally wide at all steps (its clip range: 2e-6)."""
    divergence_mask: Added[Annotated[float, Ge(0)]] = 0.0
    """Drift from which on a term that would drive the policy on is dropped (Flow-DPPO, arXiv 2606.11025: 1e-5, with
    clip_range=0); 0: none is."""
    reward: RewardMode = "sparse"
    """The final reward at every step (both papers), or dense rewards, compared step by step: SDPO's, or what a step
    gained in its deterministic completion (DenseGRPO), turning points (TP-GRPO) or branches (after TempFlow-GRPO).
    With dense rewards a step's return is the discounted sum from there on: see advantage.gamma, which turning points
    and branches need to be 0."""


class GRPO(Method):
    """Clipped policy gradient with advantages relative to the other images of the same prompt (GRPO)."""

    formula = (
        "PG(A, c), A relative to the other images of the group; + kl_weight KL of each trained step where it is > 0"
    )
    source = "arXiv 2505.07818 (DanceGRPO), arXiv 2505.05470 (Flow-GRPO)"
    Settings = GRPOSettings
    settings: GRPOSettings
    defaults = {"update.order": "accumulated", "advantage.gamma": 1.0, "advantage.normalisation": "group"}

    @property
    def members(self) -> int:
        return self.settings.group_size

    @property
    def shared_noise(self) -> bool:
        return self.settings.shared_noise

    @property
    def needs_kl(self) -> bool:
        return self.settings.kl_weight > 0

    @property
    def needs_drift(self) -> bool:
        return self.settings.ratio == "guard" or self.settings.divergence_mask > 0

    def loss(self, batch: Minibatch) -> Loss:
        """Mean over members and steps of max(-A rho, -A clip(rho)) + beta KL (both papers' objective)."""
        assert batch.advantages is not None
        log_ratio, advantages = batch.log_probs - batch.old_log_probs, batch.advantages
        metrics = {}
        if self.settings.ratio == "guard":
            assert batch.drift is not None and batch.stds is not None
            # log-ratio = z d / std - d^2 / (2 std^2) for a mean that moved by d: what is left is z d.
            log_ratio = (log_ratio + batch.drift) * batch.stds[:, None]
        if self.settings.divergence_mask > 0:
            assert batch.drift is not None
            dropped = (batch.drift >= self.settings.divergence_mask) & (advantages * log_ratio > 0)
            advantages = advantages.masked_fill(dropped, 0)
            metrics["masked_fraction"] = dropped.float().mean()
        gain = clipped_policy_gradient(advantages, log_ratio, self.settings.clip_range)
        gain = Loss(gain.value, {**gain.metrics, **metrics})
        if batch.kl is None:
            return gain
        kl = batch.kl.mean()
        return Loss(gain.value + self.settings.kl_weight * kl, {**gain.metrics, "kl_penalty": kl.detach()})
