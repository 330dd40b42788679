"""Sampling of flow-matching models: the ODE, and three ways to make its steps random.

With ``x_s = (1 - s) x0 + s eps`` the model predicts the velocity ``v = eps - x0`` at noise level ``s`` (sigma), and so
``x0^ = x - s v`` and ``eps^ = x + (1 - s) v``. A step goes from ``s`` to ``s' < s``, ``dt = s' - s``. Every rule has a
mean that is linear in x and v, ``mean = c_x x + c_v v``, and a standard deviation that depends on the step alone:

- ``ode``: ``mean = x + v dt``, no noise, no likelihood.
- ``cps`` (Flow-CPS, arXiv 2509.05952): ``std = s' sin(eta pi/2)``, ``mean = (1 - s') x0^ + s' cos(eta pi/2) eps^``.
  Noise is replaced, not added, so the state stays at the noise level that the model expects. ``eta = 0`` is the ODE;
  ``eta = 1`` throws fresh noise on the predicted original, as a consistency model's sampler does.
- ``flow`` (Flow-GRPO, arXiv 2505.05470): ``a = eta sqrt(s / (1 - s))``, with ``sigmas[1]`` for the s of the denominator
  where ``s = 1`` but for rounding; ``mean = x (1 + a^2 dt / 2s) + v (1 + a^2 (1 - s) / 2s) dt``, ``std = a sqrt(-dt)``.
- ``dance`` (DanceGRPO, arXiv 2505.07818): the same with ``a = eta``.

The last step lands on the image (``s' = 0``), where noise would be visible: it follows the ODE under every rule and is
never trained. So do the steps outside a window (``sde_steps``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sdpo_bench.errors import UsageError
from sdpo_bench.rollout.flow_scheduler import check_options, check_sampler, check_sigmas, image_shift
from sdpo_bench.rollout.gaussian_step import (
    Denoised,
    LogProbForm,
    Schedule,
    Sde,
    StepOptions,
    column,
)

NEAR_ONE = 1e-6
"""A sigma this near to 1 is 1. The scheduler computes ``shift s / (1 + (shift - 1) s)`` in float32: four roundings of
at most 2^-24 = 6e-8 each, and ``linspace`` shifts twice, which makes 5e-7 at a shift of 1 or more. At 1 - 2^-24 the
factor ``s / (1 - s)`` would be 2e7. A second sigma is farther from 1: 8e-5 at 1000 steps and shift 12."""


@dataclass(frozen=True)
class Flow(Schedule):
    """Euler steps of a flow-matching model; ``timesteps`` are float32, 1000 sigma.

    Attributes:
        sigmas: float32 ``[T + 1]``, descending; the last one is 0.
        random: bool ``[T]``, steps that draw noise.
        ever_random: bool ``[T]``, steps that do in some epoch.
        sde: rule of those steps.
        log_prob_form: ``official`` is Flow-CPS's ``mean -(x' - mean)^2``, which drops ``1/(2 std^2)`` and constants.
    """

    sigmas: Tensor
    random: Tensor
    ever_random: Tensor
    sde: Sde
    log_prob_form: LogProbForm

    sampler = "flow"

    @classmethod
    def build(cls, scheduler_config: Mapping[str, Any], steps: int, options: StepOptions) -> Self:
        check_sampler(scheduler_config, cls.sampler)
        check_options(options)
        config, sigmas = scheduler_sigmas(scheduler_config, steps, options)
        now = range(steps - 1) if options.random_steps is None else options.random_steps
        random = _drawing(now, steps, options)
        ever_random = random if options.ever_random is None else _drawing(options.ever_random, steps, options)
        own = {"sampler": cls.sampler, "steps": steps, "eta": options.eta, "sde": options.sde}
        own |= {"spacing": options.spacing, "cps_log_prob": options.cps_log_prob, "sigmas": sigmas.tolist()}
        return cls(
            timesteps=sigmas[:-1] * config["num_train_timesteps"],
            eta=options.eta,
            resolved=config | own,
            sigmas=sigmas,
            random=random,
            ever_random=ever_random,
            sde=options.sde,
            log_prob_form=options.cps_log_prob,
        )

    def std(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard deviation of each step, ``[T]``; 0 for steps of the ODE."""
        return self._gaussians[2].to(dtype)

    def denoise(self, model_output: Tensor, sample: Tensor, index: Tensor) -> Denoised:
        on_sample, on_output, std = (column(values, index, sample) for values in self._gaussians)
        return Denoised(
            mean=on_sample * sample + on_output * model_output,
            std=std,
            x0=sample - column(self.sigmas, index, sample) * model_output,
        )

    def mean_from_original(self, x0: Tensor, sample: Tensor, index: Tensor) -> Tensor:
        on_sample, on_output, _ = self._gaussians
        per_sigma = on_output / self.sigmas[:-1].double()  # v = (x - x0) / s
        from_sample, from_original = (column(c, index, sample) for c in (on_sample + per_sigma, -per_sigma))
        return from_sample * sample + from_original * x0

    def noise_levels(self) -> Tensor:
        return self.sigmas[:-1]

    def add_noise(self, clean: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        sigma = column(self.sigmas, index, clean)
        return (1 - sigma) * clean + sigma * noise

    @cached_property
    def _gaussians(self) -> tuple[Tensor, Tensor, Tensor]:
        """``c_x``, ``c_v`` and standard deviation of every step, float64 ``[T]``."""
        s, to = self.sigmas[:-1].double(), self.sigmas[1:].double()
        step = to - s
        if self.sde == "cps":
            angle = self.eta * math.pi / 2
            noise = to * math.cos(angle)
            on_sample, on_output = 1 - to + noise, (1 - s) * noise - (1 - to) * s
            std = to * math.sin(angle)
        else:
            scale = self._noise_scale(s)
            drift = scale**2 / (2 * s)
            on_sample, on_output = 1 + drift * step, (1 + drift * (1 - s)) * step
            std = scale * (-step).sqrt()
        return (
            torch.where(self.random, on_sample, 1.0),
            torch.where(self.random, on_output, step),
            torch.where(self.random, std, 0.0),
        )

    def _noise_scale(self, s: Tensor) -> Tensor:
        """``a`` of the rules ``flow`` and ``dance``."""
        if self.sde == "dance":
            return torch.full_like(s, self.eta)
        denominator = 1 - torch.where(s >= 1 - NEAR_ONE, self.sigmas[1].double(), s)
        return self.eta * (s / denominator).sqrt()

    def log_prob(self, value: Tensor, step: Denoised) -> Tensor:
        if self.log_prob_form == "gaussian":
            return super().log_prob(value, step)
        return torch.where(step.std.flatten() != 0, official_cps_log_prob(value, step.mean), 0.0)

    def gains(self) -> Tensor:
        """As :meth:`Schedule.gains`; in the official form of CPS ``2 std |d mean / d model_output|``."""
        _, on_output, std = self._gaussians
        return on_output.abs() / std if self.log_prob_form == "gaussian" else 2 * std * on_output.abs()

    def deterministic(self) -> Self:
        """The ODE."""
        return replace(self, random=torch.zeros_like(self.random))

    def deterministic_steps(self) -> set[int]:
        """The last step, and those outside the window. With eta 0 no step is random, which is refused as such."""
        return set((~self.random).nonzero()[:, 0].tolist())

    def at_every_place(self) -> Self:
        return replace(self, random=self.ever_random)

    def decision_steps(self) -> Tensor:
        return self.random.nonzero()[:, 0]

    def zero_std_advice(self) -> str:
        if self.sde == "ode":
            return "The ODE (schedule.sde = ode) draws no noise. Use --set schedule.sde=cps."
        return (
            "A flow model's last step follows the ODE, so at one step there is nothing to learn from. Use "
            "schedule.steps of 2 or more."
        )


def _drawing(chosen: Sequence[int], steps: int, options: StepOptions) -> Tensor:
    """Bool ``[T]``: the ``chosen`` steps, none where the rule draws nothing."""
    draws = torch.zeros(steps, dtype=torch.bool)
    if options.sde != "ode" and options.eta > 0:
        draws[list(chosen)] = True
    return draws


def official_cps_log_prob(value: Tensor, mean: Tensor) -> Tensor:
    """Flow-CPS's log-probability ``[n]`` as its authors compute it: the mean of ``-(x' - mean)^2``, nothing else."""
    return -((value.detach() - mean) ** 2).flatten(1).mean(1)


def scheduler_sigmas(
    scheduler_config: Mapping[str, Any], steps: int, options: StepOptions
) -> tuple[dict[str, Any], Tensor]:
    """Settings of diffusers' scheduler, and its sigmas float32 ``[T + 1]``.

    ``spacing = trailing`` gives it the sigmas 1 to 1/T that the pipelines of FLUX, Qwen-Image, Z-Image and most others
    give; ``linspace`` leaves them to the scheduler (``set_timesteps(T)``), as the pipeline of Stable Diffusion 3 does.
    A list of a distilled model replaces both. The scheduler's shift applies to all three.

    Raises:
        UsageError: a step count or a list that gives no descending sigmas.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    known = {key: value for key, value in scheduler_config.items() if key not in ("image_seq_len", "_class_name")}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(known)
    config = {key: value for key, value in scheduler.config.items() if not key.startswith("_")}
    total, shift = int(config["num_train_timesteps"]), image_shift(scheduler_config)
    if not 1 <= steps <= total:
        raise UsageError(f"{steps} denoising steps asked for; this model has 1 to {total}.")
    check_sigmas(options.sigmas, (steps,), "sigmas")
    given = np.array(options.sigmas) if options.sigmas else np.linspace(1.0, 1 / steps, steps)
    if options.spacing == "linspace" and not options.sigmas:
        scheduler.set_timesteps(steps, mu=shift)
    else:
        scheduler.set_timesteps(sigmas=given.tolist(), mu=shift)
    sigmas = scheduler.sigmas
    if not bool(torch.isfinite(sigmas).all() and (sigmas.diff() < 0).all() and sigmas[0] < 1.00001):
        way_on = "Use another number of steps."
        if options.sigmas:
            way_on = (
                "They come from the list schedule.sigmas (eval.sigmas in an evaluation), after the scheduler's shift "
                "and in float32. Change that list, or leave it out."
            )
        raise UsageError(
            f"the model's scheduler gives no sigmas that descend from at most 1 to 0 at {steps} denoising steps: "
            f"{[round(value, 4) for value in sigmas.tolist()[:6]]}. {way_on}"
        )
    if shift is not None:
        config |= {"image_seq_len": scheduler_config["image_seq_len"], "mu": shift}
    return config, sigmas


def scheduler_spaced_sigmas(scheduler_config: Mapping[str, Any], steps: int) -> list[float]:
    """The sigmas that ``spacing = linspace`` leaves to the scheduler, as a list to give it: evenly spaced from its
    largest to its smallest, before its shift (``set_timesteps`` of diffusers' scheduler)."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    known = {key: value for key, value in scheduler_config.items() if key != "_class_name"}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(known)
    return np.linspace(scheduler.sigma_max, scheduler.sigma_min, steps).tolist()
