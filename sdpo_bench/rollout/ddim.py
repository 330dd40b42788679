"""Stochastic DDIM (Song et al. 2021, eq. 12 and 16), the sampler of SDPO, DDPO and D3PO."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sdpo_bench.rollout.flow_scheduler import check_sampler
from sdpo_bench.rollout.gaussian_step import (
    Denoised,
    DiffusionSchedule,
    PrevRule,
    Spacing,
    StepOptions,
    column,
    predicted_original,
    read_scheduler,
    refuse_foreign_options,
)

# DDIM's own defaults (True, True) would clamp x0 and make the last step deterministic; these are SD-Turbo's.
DEFAULTS: dict[str, Any] = {"steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False}

OPTIONS = ("eta", "spacing", "prev_timestep", "std_floor")


@dataclass(frozen=True)
class DDIM(DiffusionSchedule):
    """DDIM with noise ``eta``; the previous timestep is the next entry of the list, or the official ``t - N // T``."""

    sampler = "ddim"

    @classmethod
    def build(cls, scheduler_config: Mapping[str, Any], steps: int, options: StepOptions) -> Self:
        from diffusers import DDIMScheduler

        check_sampler(scheduler_config, cls.sampler)
        refuse_foreign_options(cls.sampler, options, OPTIONS)
        config, overruled = read_scheduler(scheduler_config, DEFAULTS, steps, options)
        total = int(config["num_train_timesteps"])
        alphas = DDIMScheduler(**config).alphas_cumprod
        timesteps = spaced_timesteps(steps, total, options.spacing, int(config["steps_offset"]))
        last = -1 if config["set_alpha_to_one"] else 0
        prev = _previous(timesteps, total, options.prev_timestep, last)
        alpha_prev = torch.where(prev >= 0, alphas[prev.clamp(min=0)], torch.ones(()))
        resolved = config | {"sampler": cls.sampler, "steps": steps, "overruled": overruled}
        resolved |= {name: getattr(options, name) for name in OPTIONS}
        return cls(
            timesteps=timesteps,
            prev_timesteps=prev,
            alpha_t=alphas[timesteps],
            alpha_prev=alpha_prev,
            eta=options.eta,
            prediction_type=config["prediction_type"],
            std_floor=options.std_floor,
            resolved=resolved,
        )

    def std(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard deviation of each step, ``[T]`` (DDIM eq. 16 times eta)."""
        alpha_t, alpha_prev = self.alpha_t.to(dtype), self.alpha_prev.to(dtype)
        variance = (1 - alpha_prev) / (1 - alpha_t) * (1 - alpha_t / alpha_prev)
        # Rounding may leave -1e-9 where the exact value is 0; a genuine floor is the caller's choice.
        return (self.eta * variance.clamp(min=0) ** 0.5).clamp(min=self.std_floor)

    def denoise(self, model_output: Tensor, sample: Tensor, index: Tensor) -> Denoised:
        alpha_t = column(self.alpha_t, index, sample)
        alpha_prev = column(self.alpha_prev, index, sample)
        std = column(self.std(sample.dtype), index, sample)
        x0, epsilon = self._original_and_noise(model_output, sample, alpha_t)
        direction = (1 - alpha_prev - std**2).clamp(min=0) ** 0.5
        return Denoised(mean=alpha_prev**0.5 * x0 + direction * epsilon, std=std, x0=x0)

    def mean_from_original(self, x0: Tensor, sample: Tensor, index: Tensor) -> Tensor:
        alpha_t = column(self.alpha_t, index, sample)
        alpha_prev = column(self.alpha_prev, index, sample)
        std = column(self.std(sample.dtype), index, sample)
        epsilon = (sample - alpha_t**0.5 * x0) / (1 - alpha_t) ** 0.5
        return alpha_prev**0.5 * x0 + (1 - alpha_prev - std**2).clamp(min=0) ** 0.5 * epsilon

    def _original_and_noise(self, output: Tensor, sample: Tensor, alpha_t: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = alpha_t**0.5, (1 - alpha_t) ** 0.5
        x0 = predicted_original(self.prediction_type, output, sample, alpha_t)
        if self.prediction_type == "epsilon":
            return x0, output
        if self.prediction_type == "v_prediction":
            return x0, signal * output + noise * sample
        return x0, (sample - signal * x0) / noise

    def deterministic(self) -> Self:
        """DDIM with eta 0."""
        return replace(self, eta=0.0, std_floor=0.0)

    def gains(self) -> Tensor:
        alpha_t, alpha_prev = self.alpha_t.double(), self.alpha_prev.double()
        std = self.std(torch.float64)
        direction = (1 - alpha_prev - std**2).clamp(min=0).sqrt()
        per_output = {
            "epsilon": direction - alpha_prev.sqrt() * (1 - alpha_t).sqrt() / alpha_t.sqrt(),
            "v_prediction": direction * alpha_t.sqrt() - alpha_prev.sqrt() * (1 - alpha_t).sqrt(),
            "sample": alpha_prev.sqrt() - direction * alpha_t.sqrt() / (1 - alpha_t).sqrt(),
        }
        return per_output[self.prediction_type].abs() / std

    def zero_std_advice(self) -> str:
        r = self.resolved
        return (
            f"This schedule: spacing '{r['spacing']}', {self.num_steps} steps, steps_offset {r['steps_offset']}, "
            f"set_alpha_to_one {r['set_alpha_to_one']}. Use schedule.spacing=trailing with at most 500 steps, or set a "
            "floor, e.g. --set schedule.std_floor=0.01."
        )


def spaced_timesteps(steps: int, total: int, spacing: Spacing, offset: int = 1) -> Tensor:
    """Exactly ``steps`` descending timesteps of ``0..total-1``, int64 ``[steps]``.

    Counting ``k = 0..steps-1`` (instead of a float range) avoids the extra entry that the trailing rule of common
    schedulers yields for dozens of step counts, 61 being the first.
    """
    k = np.arange(steps)
    if spacing == "trailing":
        values = np.round(total - k * (total / steps)) - 1
    elif spacing == "leading":
        values = (k * (total // steps))[::-1] + offset
    else:
        values = np.round(np.linspace(0, total - 1, steps))[::-1]
    return torch.from_numpy(np.clip(values, 0, total - 1).astype(np.int64))


def _previous(timesteps: Tensor, total: int, rule: PrevRule, last: int) -> Tensor:
    if rule == "official":
        return (timesteps - total // len(timesteps)).clamp(0, total - 1)
    return torch.cat([timesteps[1:], torch.tensor([last])])
