"""Denoising as a Markov decision process: pick a sampler family, lint its steps, weigh them.

The families stand in modules of their own (``ddim``, ``lcm``, ``flow``) and share the contract of
``gaussian_step.Schedule``. A new one is a file beside them, an entry of :data:`SAMPLERS` and a name in ``settings``
(CONTRIBUTING.md).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.rollout.ddim import DDIM, spaced_timesteps
from sdpo_bench.rollout.flow import Flow
from sdpo_bench.rollout.gaussian_step import (
    Denoised,
    Schedule,
    StepOptions,
    gaussian_kl,
    gaussian_log_prob,
)
from sdpo_bench.rollout.lcm import LCM

__all__ = [
    "SAMPLERS",
    "Denoised",
    "Schedule",
    "StepOptions",
    "gaussian_kl",
    "gaussian_log_prob",
    "lint",
    "make_schedule",
    "sampler_family",
    "spaced_timesteps",
    "step_weights",
]

SAMPLERS: dict[str, type[Schedule]] = {family.sampler: family for family in (DDIM, LCM, Flow)}


def sampler_family(name: str) -> type[Schedule]:
    """The family of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in SAMPLERS:
        raise UsageError(f"unknown sampler '{name}'.{nearest(name, SAMPLERS)}")
    return SAMPLERS[name]


def make_schedule(
    scheduler_config: Mapping[str, Any], steps: int, *, sampler: str = "ddim", **options: Any
) -> Schedule:
    """The schedule of ``steps`` denoising steps for a model trained with ``scheduler_config``.

    Args:
        scheduler_config: the pipeline's scheduler settings (any Stable-Diffusion-family or flow-matching file).
        sampler: family, a key of :data:`SAMPLERS`.
        options: fields of :class:`StepOptions`. ``prev_timestep = "grid"`` lands on the next timestep of the list,
            ``"official"`` on ``t - N // T``, which is what the published code does and which leaves the list where T
            does not divide N.

    Raises:
        UsageError: a model of another kind than the sampler's, a step count outside the model's range, a negative eta,
            an unknown prediction type, or an option that this sampler does not have.
    """
    return sampler_family(sampler).build(scheduler_config, steps, StepOptions(**options))


SMALLEST_STD = 1e-6
"""Noise below this is lost in the rounding of a float32 latent, and its square soon underflows."""


def lint(schedule: Schedule, *, needs_log_prob: bool) -> list[str]:
    """Refuse a schedule whose log-probabilities do not exist; return warnings about a legal but odd one.

    Raises:
        UsageError: duplicate timesteps, or (where log-probabilities are needed) steps with standard deviation 0 that
            the sampler's own design does not have, or no random step at all.
    """
    times = schedule.timesteps.tolist()
    if len(set(times)) < len(times):
        raise UsageError(f"this schedule repeats timesteps at {len(times)} steps: {times[:8]} ...")
    if needs_log_prob:
        _refuse_zero_std(schedule)
    return schedule.warnings()


def _refuse_zero_std(schedule: Schedule) -> None:
    still = {i for i, value in enumerate(schedule.std().tolist()) if not value > SMALLEST_STD}
    bad = sorted(still - schedule.deterministic_steps())
    if len(still) < schedule.num_steps and not bad:
        return
    if schedule.eta == 0:
        raise UsageError(
            "eta = 0 makes sampling deterministic, so log-probabilities do not exist and nothing can be learnt. "
            "Use schedule.eta > 0 (the paper uses 1)."
        )
    shown = ", ".join(f"step {i} (t = {int(schedule.timesteps[i])})" for i in (bad or sorted(still))[:4])
    raise UsageError(
        f"{shown}: the step's standard deviation is 0 or too small for float32, so its log-probability does not exist. "
        f"{schedule.zero_std_advice()}"
    )


def step_weights(schedule: Schedule, rule: str) -> Tensor:
    """Weight of each step's log-ratio in the loss, float32 ``[T]``; 0 for deterministic steps.

    ``official``: 1 everywhere. ``skip-last``: 0 for the last step, whose noise cannot change the reward of the
    predicted original. ``equal-gain``: inverse to :meth:`Schedule.gains`, so that all steps contribute equally to
    the gradient. ``noise-level``: proportional to the step's standard deviation (TempFlow-GRPO, arXiv 2508.04324: its
    ``g sqrt(-dt)``, on any schedule). Both have mean 1 over all steps that draw in some epoch, so a step's weight does
    not depend on where the window of random steps is.
    """
    steps = schedule.num_steps
    random = schedule.std() > 0
    if rule in ("equal-gain", "noise-level") and bool(random.any()):
        every = schedule.at_every_place()
        ever = every.std() > 0
        size = 1 / every.gains() if rule == "equal-gain" else every.std()
        return torch.where(random, size / size[ever].mean(), 0.0).float()
    weights = random.float()
    if rule == "skip-last" and steps > 1:
        weights[-1] = 0.0
    return weights
