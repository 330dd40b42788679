"""D3PO (direct preference for denoising diffusion policy optimisation), Yang et al. 2023, arXiv 2311.13231."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sdpo_bench.api import Loss, Method, Minibatch, RewardMode, StepRewardSettings


@dataclass(frozen=True)
class D3POSettings(StepRewardSettings):
    """Settings of D3PO's own."""

    beta: Annotated[float, Gt(0)] = 0.1
    """Temperature of the preference model (official: 0.1)."""
    clip_range: Annotated[float, Gt(0)] = 0.1
    """The ratio to the base model is clamped to 1 +- this (official: 0.1)."""


def preference_loss(batch: Minibatch, beta: float, clip_range: float, reward: RewardMode) -> Loss:
    """mean -ln sigmoid(beta sum_m pref_m ln rho_m), rho_m = clamp(pi / pi_ref, 1 +- c); ties have pref 0; c = 0: no
    clamp. Of a pair the final images are compared (``sparse``), or the rewards of the same step (other modes)."""
    from torch.nn.functional import logsigmoid

    assert batch.ref_log_probs is not None
    log_ratio = batch.log_probs - batch.ref_log_probs
    metrics = {}
    if clip_range > 0:
        ratio = log_ratio.exp()
        # Not "clip_fraction": that is of the ratio to the old policy, which is 1 before an epoch's first update.
        metrics["base_clip_fraction"] = ((ratio - 1).abs() > clip_range).float().mean()
        log_ratio = ratio.clamp(1 - clip_range, 1 + clip_range).log()
    judged = batch.final_rewards[..., None] if reward == "sparse" else batch.rewards
    preferred = (judged[:, 0] - judged[:, 1]).sign()
    margin = beta * preferred * (log_ratio[:, 0] - log_ratio[:, 1])
    metrics |= {"margin": margin.detach().mean(), "implicit_accuracy": (margin > 0).float().mean()}
    return Loss(-logsigmoid(margin).mean(), metrics)


class D3PO(Method):
    """Preference loss at every denoising step, the better final image's trajectory preferred (D3PO)."""

    formula = "mean -ln sigmoid(beta y (ln rho_a - ln rho_b)), per step; here rho = clamp(exp(w_i (lp - ref)), 1 +- c)"
    source = "arXiv 2311.13231; code yk7333/d3po"
    Settings = D3POSettings
    settings: D3POSettings
    members = 2
    shared_noise = True
    signal = "preference"
    needs_reference = True
    defaults = {"update.order": "accumulated", "update.lr": 3e-5}

    def loss(self, batch: Minibatch) -> Loss:
        """:func:`preference_loss` with the settings."""
        settings = self.settings
        return preference_loss(batch, settings.beta, settings.clip_range, settings.reward)
