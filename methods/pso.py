"""PSO (pairwise sample optimisation), Miao et al. 2024, arXiv 2410.03190: the online variant for distilled models.

Both images of a pair are drawn from the current few-step model, so a step's likelihood is that of the distilled
sampler itself and few-step generation survives the tuning. Per step the loss is D3PO's; what differs is the pair
(independent initial noise), the temperature, and that the last step, nearly or wholly deterministic in a distilled
sampler, is not trained.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from sdpo_bench.api import Loss, Method, Minibatch, StepRewardSettings
from sdpo_bench.methods.d3po import preference_loss


@dataclass(frozen=True)
class PSOSettings(StepRewardSettings):
    """Settings of PSO's own."""

    beta: Annotated[float, Gt(0)] = 50.0
    """Temperature of the preference model (authors' online code: 50)."""
    clip_range: Annotated[float, Ge(0)] = 0.1
    """The ratio to the base model is clamped to 1 +- this (authors' online code: 0.1); 0: the paper's loss without."""


class PSO(Method):
    """Preference loss at every step but the last, on pairs from the few-step model itself (online PSO)."""

    formula = "as d3po, on pairs from independent noise, without the last step"
    source = "arXiv 2410.03190"
    Settings = PSOSettings
    settings: PSOSettings
    members = 2
    signal = "preference"
    needs_reference = True
    defaults = {"update.order": "accumulated", "update.lr": 1e-5, "update.step_weight": "skip-last"}

    def loss(self, batch: Minibatch) -> Loss:
        """mean -ln sigmoid(beta pref [ln rho_a - ln rho_b]), rho = pi / pi_ref of one step; ties: pref 0."""
        settings = self.settings
        return preference_loss(batch, settings.beta, settings.clip_range, settings.reward)
