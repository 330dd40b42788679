"""Reward-weighted flow matching (ORW-CFM-W2), Fan et al. 2025, arXiv 2502.06061: a method without likelihoods.

Final samples get fresh noise, and the model learns to take that noise off again, good samples before bad ones. Any
sampler will do, and a single denoising step. The paper weighs a sample by exp(R / temperature); here the members of a
group share out one unit of weight, so that neither unit nor zero of the reward matter to the size of a step.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from sdpo_bench.api import Loss, Method, Minibatch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WeightedMatchingSettings:
    """Settings of reward-weighted matching's own."""

    group_size: Annotated[int, Ge(2)] = 4
    """Images of one prompt that share out one unit of weight."""
    temperature: Annotated[float, Gt(0)] = 0.5
    """Rewards are divided by this before the softmax: the lower, the more the best image takes."""
    anchor: Annotated[float, Ge(0)] = 0.1
    """alpha: weight of the squared difference of velocities to the base model, which bounds the Wasserstein-2 distance
    to it; 0 computes none."""


class WeightedMatching(Method):
    """Learns to denoise each image by its share of the group's exponentiated reward (no likelihoods)."""

    formula = "mean sum over the group of softmax(R / temperature) |v - (eps - x0)|^2 + anchor |v - v_ref|^2"
    source = "arXiv 2502.06061"
    Settings = WeightedMatchingSettings
    settings: WeightedMatchingSettings
    signal = "preference"
    granularity = "noised"
    defaults = {"update.order": "accumulated"}

    @property
    def members(self) -> int:
        return self.settings.group_size

    @property
    def needs_reference(self) -> bool:
        return self.settings.anchor > 0

    def loss(self, batch: Minibatch) -> Loss:
        """mean over groups of sum_m w_m |v_m - (eps - x0)|^2 + alpha mean_m |v_m - v_ref,m|^2, w = softmax(r / T)."""
        seen = batch.noised
        assert seen is not None  # since granularity = "noised"
        weight = (batch.final_rewards / self.settings.temperature).softmax(1)  # [b, G]
        matching = (weight * velocity_gap(seen.original, seen.clean, seen.level)).sum(1).mean()
        metrics = {"matching": matching.detach(), "largest_weight": weight.max(1).values.mean()}
        if seen.ref_original is None:
            return Loss(matching, metrics)
        drift = velocity_gap(seen.original, seen.ref_original, seen.level).mean()
        return Loss(matching + self.settings.anchor * drift, {**metrics, "drift": drift.detach()})


def velocity_gap(original: "Tensor", other: "Tensor", level: "Tensor") -> "Tensor":
    """``[b, G]`` mean squared difference of two velocities: that of their originals over the squared noise level."""
    return ((original - other) / level).square().flatten(2).mean(-1)
