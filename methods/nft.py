"""DiffusionNFT, Zheng et al. 2025, arXiv 2509.16117; official code NVlabs/DiffusionNFT.

A forward-process method: it needs no likelihood of a sampler's steps, so any sampler and a single step will do. Final
samples are noised again, and the policy is moved towards good samples and away from bad ones by two implicit policies
on either side of the one that sampled. Written with predicted originals, which flow, epsilon and v models all have.

Official advantages are (R - mean of the group) / (standard deviation of the whole batch + 1e-4): here
``advantage.std = batch``. The default divides by the group's standard deviation + 1e-6, as for every grouped method.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge, Gt, Le

from sdpo_bench.api import Loss, Minibatch
from sdpo_bench.methods._noised_groups import GroupSettings, NoisedGroups, kept_share

if TYPE_CHECKING:
    from torch import Tensor

FLOOR = 1e-5
"""Smallest normalising error (official code)."""


@dataclass(frozen=True)
class NFTSettings(GroupSettings):
    """Settings of NFT's own."""

    beta: Annotated[float, Gt(0), Le(10)] = 1.0
    """b: how far the implicit policies stand from the policy that sampled (official: 1; OCR 0.1)."""
    advantage_range: Annotated[float, Gt(0)] = 5.0
    """Advantages of this magnitude count as wholly good or bad (official: 5)."""
    kl_weight: Annotated[float, Ge(0)] = 1e-4
    """Weight of the squared difference of velocities to the base model (official: 1e-4); 0 computes none."""
    old_policy: Literal["newest", "slow", "late"] = "slow"
    """The policy that samples the next epoch after n optimiser steps in all (official decay types 0, 1 and 2): the
    newest one; it keeps min(0.001 n, 0.5) of itself; or nothing up to n = 75, then min(0.0075 (n - 75), 0.999)."""


class NFT(NoisedGroups):
    """Negative-aware fine-tuning on re-noised samples, without likelihoods (DiffusionNFT)."""

    formula = (
        "mean a (r l+ + (1 - r) l-) / b, r = clip(A / 2a + 1/2, 0, 1); l+- the normalised error of the policies "
        "v_old +- b (v - v_old) on re-noised samples; + kl_weight |v - v_ref|^2"
    )
    source = "arXiv 2509.16117, eq. 5, Algorithm 1; code NVlabs/DiffusionNFT"
    Settings = NFTSettings
    settings: NFTSettings
    needs_old = True

    @property
    def needs_reference(self) -> bool:
        return self.settings.kl_weight > 0

    def old_decay(self, updates: int) -> float:
        if self.settings.old_policy == "newest":
            return 0.0
        if self.settings.old_policy == "slow":
            return kept_share(updates, 0.5)
        return 0.0 if updates < 75 else min(0.0075 * (updates - 75), 0.999)

    def loss(self, batch: Minibatch) -> Loss:
        """mean a (r l+ + (1 - r) l-) / b + weight |v - v_ref|^2, r in [0, 1] how good a sample is (eq. 5, Algorithm 1).

        l+- is the squared error of b x + (1 - b) x_old and of (1 + b) x_old - b x, divided by its own mean absolute
        error.
        """
        seen, beta, limit = batch.noised, self.settings.beta, self.settings.advantage_range
        assert seen is not None and seen.old_original is not None and batch.advantages is not None
        good = (batch.advantages[..., 0] / (2 * limit) + 0.5).clamp(0, 1)
        towards = beta * seen.original + (1 - beta) * seen.old_original
        away = (1 + beta) * seen.old_original - beta * seen.original
        positive, negative = _normalised_error(towards, seen.clean), _normalised_error(away, seen.clean)
        value = limit * ((good * positive + (1 - good) * negative) / beta).mean()
        metrics = {"positive_loss": positive.mean().detach(), "negative_loss": negative.mean().detach()}
        if seen.ref_original is None:
            return Loss(value, metrics)
        drift = ((seen.original - seen.ref_original) / seen.level).square().mean()
        return Loss(value + self.settings.kl_weight * drift, {**metrics, "drift": drift.detach()})


def _normalised_error(original: "Tensor", clean: "Tensor") -> "Tensor":
    """``[b, G]`` mean squared error over the mean absolute error, which carries no gradient and is float64."""
    error = (original - clean).flatten(2)
    scale = error.detach().double().abs().mean(-1).clamp(min=FLOOR)
    return (error.square().mean(-1).double() / scale).to(error.dtype)
