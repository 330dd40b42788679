"""D3PO (direct preference for denoising diffusion policy optimisation), Yang et al. 2023, arXiv 2311.13231."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sdpo_bench.api import Loss, Method, Minibatch


@dataclass(frozen=True)
class D3POSettings:
    """Settings of D3PO's own."""

    beta: Annotated[float, Gt(0)] = 0.1
    """Temperature of the preference model (official: 0.1)."""
    clip_range: Annotated[float, Gt(0)] = 0.1
    """The ratio to the base model is clamped to 1 +- this (official: 0.1)."""


class D3PO(Method):
    """Preference loss at every denoising step, the better final image's trajectory preferred (D3PO)."""

    Settings = D3POSettings
    settings: D3POSettings
    members = 2
    shared_noise = True
    signal = "preference"
    needs_reference = True
    defaults = {"update.order": "accumulated", "update.lr": 3e-5}

    def loss(self, batch: Minibatch) -> Loss:
        """mean -ln sigmoid(beta sum_m pref_m ln rho_m), rho_m = clamp(pi / pi_ref, 1 +- c); ties have pref 0."""
        from torch.nn.functional import logsigmoid

        assert batch.ref_log_probs is not None
        clip = self.settings.clip_range
        raw = (batch.log_probs - batch.ref_log_probs).exp()
        log_ratio = raw.clamp(1 - clip, 1 + clip).log()
        preferred = (batch.final_rewards[:, 0] - batch.final_rewards[:, 1]).sign()[:, None]
        margin = self.settings.beta * preferred * (log_ratio[:, 0] - log_ratio[:, 1])
        metrics = {
            "margin": margin.detach().mean(),
            "implicit_accuracy": (margin > 0).float().mean(),
            "clip_fraction": ((raw - 1).abs() > clip).float().mean(),
        }
        return Loss(-logsigmoid(margin).mean(), metrics)
