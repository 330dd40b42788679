"""Advantage-weighted matching (AWM), Xue et al. 2025, arXiv 2509.25050.

The policy gradient of Flow-GRPO with the flow-matching loss in place of the log-probability: minus the squared error
of the velocity on a re-noised sample stands for how likely the policy makes that sample.

The authors' code (scxue/advantage_weighted_matching be51372, scripts/train_sd3_awm.py) and Flow-Factory (a0b2bc5) keep
an average of the policy that moves once an epoch. It is a second anchor (``ema_beta``; here ``old_weight``). With
``off_policy`` it also samples, and the ratio compares with it: here ``old_policy = slow``. Their runs have no
``off_policy``, so the newest policy samples; here the policy that anchors is always the one that samples. Their
weighting is ``generalised-huber``, while the default here weighs the plain error by the noise level.

In their runs the anchor holds the policy (``ema_beta`` 1; ``clip_range`` 1 hardly clips) and advantages are divided
by 5 (``advantage_max`` / ``adv_clip_max``): their weights count five times as much beside the advantages here.
Flow-Factory's examples clip at 1 too, and advantages at 1; its guide clips at 1e-5. The defaults here have no anchor.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from annotated_types import Ge

from sdpo_bench.api import Added, Loss, Minibatch
from sdpo_bench.methods._noised_groups import GroupSettings, NoisedGroups, kept_share, velocity_error
from sdpo_bench.methods.ddpo import clipped_policy_gradient

if TYPE_CHECKING:
    from torch import Tensor

MOST_KEPT = 0.3
"""Largest share of itself that a slow old policy keeps (the authors' ``kl_ema_decay``)."""
POWER = 0.25
"""p of the generalised Huber weighting."""


@dataclass(frozen=True)
class AWMSettings(GroupSettings):
    """Settings of AWM's own."""

    clip_range: Annotated[float, Ge(0)] = 1e-5
    """PPO clip range of exp(difference of surrogates) (Flow-Factory's guide: 1e-5; authors: 1, which hardly ever clips,
    beside an anchor to the old policy); 0: no clipping."""
    weighting: Literal["uniform", "level", "level-squared", "huber", "generalised-huber"] = "level"
    """Surrogate log-probability of an error e at noise level t: -e, -t e, -t^2 e, -t (sqrt(e + 1e-10) - 1e-5) or
    -t ((e + 1e-10)^p - 1e-10^p) / p with p = 0.25 (Flow-Factory)."""
    kl_weight: Annotated[float, Ge(0)] = 1e-4
    """Weight of the squared difference of velocities to the base model (Flow-Factory's SD3.5: 1e-4, FLUX: 0; authors:
    1e-4 to 3e-3 beside advantages divided by 5, here 5e-4 to 0.015); 0 computes none."""
    old_policy: Added[Literal["newest", "slow"]] = "newest"
    """The policy that samples the next epoch and that the ratio compares with, after n optimiser steps: the newest one,
    or one that keeps min(0.001 n, 0.3) of itself (authors: ``off_policy``, ``kl_ema_decay_type = linear``)."""
    old_weight: Added[Annotated[float, Ge(0)]] = 0.0
    """Weight of the squared difference of velocities to that policy (authors: 1 beside advantages divided by 5, here 5;
    Flow-Factory: 0.1 to 1 beside advantages clipped at 1)."""


class AWM(NoisedGroups):
    """Clipped policy gradient on minus the flow-matching error of re-noised samples (advantage-weighted matching)."""

    formula = (
        "PG(A, c) with r = s(e_old) - s(e), e = |v - (eps - x0)|^2 on re-noised samples, s by weighting; + "
        "kl_weight |v - v_ref|^2 + old_weight |v - v_old|^2"
    )
    source = "arXiv 2509.25050; code scxue/advantage_weighted_matching, X-GenGroup/Flow-Factory"
    Settings = AWMSettings
    settings: AWMSettings
    needs_old = True

    @property
    def needs_reference(self) -> bool:
        return self.settings.kl_weight > 0

    def old_decay(self, updates: int) -> float:
        return 0.0 if self.settings.old_policy == "newest" else kept_share(updates, MOST_KEPT)

    def loss(self, batch: Minibatch) -> Loss:
        """mean max(-A rho, -A clip(rho)), rho = exp(s(e_old) - s(e)), e = |v - (noise - clean)|^2 on the same noise."""
        seen = batch.noised
        assert seen is not None and seen.old_original is not None and batch.advantages is not None
        kind, level = self.settings.weighting, seen.level.flatten(1)
        now = surrogate(velocity_error(seen, seen.original), level, kind)
        gap = now - surrogate(velocity_error(seen, seen.old_original), level, kind)
        gain = clipped_policy_gradient(batch.advantages, gap[..., None], self.settings.clip_range)
        value, metrics = gain.value, dict(gain.metrics)
        if seen.ref_original is not None:
            drift = ((seen.original - seen.ref_original) / seen.level).square().mean()
            value, metrics["drift"] = value + self.settings.kl_weight * drift, drift.detach()
        if self.settings.old_weight > 0:
            moved = ((seen.original - seen.old_original) / seen.level).square().mean()
            value, metrics["drift_from_old"] = value + self.settings.old_weight * moved, moved.detach()
        return Loss(value, metrics)


def surrogate(error: "Tensor", level: "Tensor", kind: str) -> "Tensor":
    """What stands for a log-probability: minus a function of the error ``[b, G]`` at noise levels ``[b, 1]``."""
    if kind == "huber":
        return -level * ((error + 1e-10).sqrt() - 1e-5)
    if kind == "generalised-huber":
        return -level / POWER * ((error + 1e-10) ** POWER - 1e-10**POWER)
    return -error * level ** {"uniform": 0, "level": 1, "level-squared": 2}[kind]
