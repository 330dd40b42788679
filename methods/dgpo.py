"""DGPO (direct group preference optimisation), Luo et al. 2025, arXiv 2510.08425.

A preference loss between the better and the worse images of a group, on re-noised samples: the flow-matching error
relative to the base model stands for a log-likelihood ratio, as in Diffusion-DPO. All members share their fresh noise.
On a model with classifier-free guidance the loss has the guidance of sampling, Flow-Factory's has none. It can also
measure against a moving average of the policy, which is not here.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from sdpo_bench.api import Loss, Minibatch
from sdpo_bench.methods._noised_groups import GroupSettings, NoisedGroups
from sdpo_bench.methods.awm import velocity_error


@dataclass(frozen=True)
class DGPOSettings(GroupSettings):
    """Settings of DGPO's own."""

    beta: Annotated[float, Gt(0)] = 100.0
    """How sharply the group's preference saturates (Flow-Factory: 10 to 100 with the base model as reference)."""
    clip_range: Annotated[float, Ge(0)] = 0.0
    """Samples that have already moved this far from the policy that sampled, in the direction of their advantage, get
    no gradient; 0: all do. The measure is exp(e_old - e)."""


class DGPO(NoisedGroups):
    """Group preference loss on flow-matching errors relative to the base model (DGPO)."""

    formula = "mean sigmoid(S) A e, S = sum over the group of A beta (e - e_ref) / G without gradient"
    source = "arXiv 2510.08425"
    Settings = DGPOSettings
    settings: DGPOSettings
    needs_reference = True
    same_fresh_noise = True

    @property
    def needs_old(self) -> bool:
        return self.settings.clip_range > 0

    def loss(self, batch: Minibatch) -> Loss:
        """mean sigmoid(S) A_i e_i, S = sum_j A_j beta (e_j - e_ref,j) / G without gradient, e the velocity's error."""
        seen = batch.noised
        assert seen is not None and seen.ref_original is not None and batch.advantages is not None
        advantage = batch.advantages[..., 0]
        error, ref_error = velocity_error(seen, seen.original), velocity_error(seen, seen.ref_original)
        if seen.old_original is not None:
            ratio, clip = (velocity_error(seen, seen.old_original) - error).exp().detach(), self.settings.clip_range
            done = (ratio > 1 + clip).where(advantage > 0, ratio < 1 - clip)
            error = error.detach().where(done, error)
        preference = (advantage * self.settings.beta * (error - ref_error)).mean(1, keepdim=True).detach().sigmoid()
        return Loss((preference * advantage * error).mean(), {"preference": preference.mean()})
