"""DGPO (direct group preference optimisation), Luo et al. 2025, arXiv 2510.08425.

A preference loss between the better and the worse images of a group, on re-noised samples: the flow-matching error
relative to a reference stands for a log-likelihood ratio, as in Diffusion-DPO. All members share their fresh noise.

The authors' code (Luo-Yihong/DGPO 01ceb4b, scripts/train_sd3_dgpo.py and config/) samples with classifier-free guidance
and has none in the loss (``cfg = False`` for the policy and the old one; of the base model ``kl_cfg = 1``): here
``guidance = none``. It keeps an average of the policy, min(0.3, 0.001 n) of itself at each optimiser step n, for the
clipping, as reference where ``use_ema_ref`` is set (from TDM-R1, arXiv 2603.07700), and for sampling from step
``switch_ema_ref`` (200 to 500) on: here ``old_policy = slow``, which moves at the end of an epoch and samples from the
first one on, and ``reference = old``. Not here: the KL of its loss to the base model (weight 0.001 to 0.02), and that
it trains the noisiest 5 or 7 of its ten levels alone (``trunc_steps``).
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from sdpo_bench.api import Added, Loss, Minibatch
from sdpo_bench.methods._noised_groups import GroupSettings, NoisedGroups, kept_share, velocity_error

MOST_KEPT = 0.3
"""Largest share of itself that a slow old policy keeps (official code)."""


@dataclass(frozen=True)
class DGPOSettings(GroupSettings):
    """Settings of DGPO's own."""

    beta: Annotated[float, Gt(0)] = 100.0
    """How sharply the group's preference saturates (Flow-Factory: 10 to 100 with the base model as reference)."""
    clip_range: Annotated[float, Ge(0)] = 0.0
    """Samples that have already moved this far from the policy that sampled, in the direction of their advantage, get
    no gradient; 0: all do. The measure is exp(e_old - e) (official, always on: 0.001 to 0.05 with the base model as
    reference, 1e-5 with ``reference = old``)."""
    old_policy: Added[Literal["newest", "slow"]] = "newest"
    """The policy that samples the next epoch and that the clipping compares with, after n optimiser steps: the newest
    one, or one that keeps min(0.001 n, 0.3) of itself (official)."""
    reference: Added[Literal["base", "old"]] = "base"
    """What errors are relative to: the base model, or that policy (official ``use_ema_ref``, with a beta of 2000)."""
    guidance: Added[Literal["sampling", "none"]] = "sampling"
    """Classifier-free guidance of the loss: that of sampling, or none (official; half of the calls of an update)."""


class DGPO(NoisedGroups):
    """Group preference loss on flow-matching errors relative to the base model (DGPO)."""

    formula = "mean sigmoid(S) A e, S = sum over the group of A beta (e - e_ref) / G without gradient"
    source = "arXiv 2510.08425; code Luo-Yihong/DGPO, X-GenGroup/Flow-Factory"
    Settings = DGPOSettings
    settings: DGPOSettings
    same_fresh_noise = True

    @property
    def needs_reference(self) -> bool:
        return self.settings.reference == "base"

    @property
    def needs_old(self) -> bool:
        return self.settings.clip_range > 0 or self.settings.reference == "old"

    @property
    def keeps_old(self) -> bool:
        return self.needs_old or self.settings.old_policy == "slow"

    def old_decay(self, updates: int) -> float:
        return 0.0 if self.settings.old_policy == "newest" else kept_share(updates, MOST_KEPT)

    @property
    def guided_loss(self) -> bool:
        return self.settings.guidance == "sampling"

    def loss(self, batch: Minibatch) -> Loss:
        """mean sigmoid(S) A_i e_i, S = sum_j A_j beta (e_j - e_ref,j) / G without gradient, e the velocity's error."""
        seen = batch.noised
        assert seen is not None and batch.advantages is not None
        reference = seen.ref_original if self.settings.reference == "base" else seen.old_original
        assert reference is not None
        advantage, clip = batch.advantages[..., 0], self.settings.clip_range
        error, ref_error = velocity_error(seen, seen.original), velocity_error(seen, reference)
        if clip > 0:
            assert seen.old_original is not None
            ratio = (velocity_error(seen, seen.old_original) - error).exp().detach()
            done = (ratio > 1 + clip).where(advantage > 0, ratio < 1 - clip)
            error = error.detach().where(done, error)
        preference = (advantage * self.settings.beta * (error - ref_error)).mean(1, keepdim=True).detach().sigmoid()
        return Loss((preference * advantage * error).mean(), {"preference": preference.mean()})
