"""Multistep consistency sampling (Luo et al. 2023, arXiv 2310.04378, algorithm 3), as stock LCMScheduler does it.

Each step maps the latents to a predicted original with the consistency function, ``f = c_skip x + c_out x0``, and
throws fresh noise on it: mean ``sqrt(abar_p) f``, standard deviation ``sqrt(1 - abar_p)``. The last step returns
``f`` itself. It draws nothing, so it is no decision of the policy: its log-probability is 0 by convention, it has
weight 0 in every loss, and it costs no backward call. ``std_floor`` > 0 makes it a Gaussian of that width instead.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sdpo_bench.errors import UsageError
from sdpo_bench.rollout.flow_scheduler import check_sampler
from sdpo_bench.rollout.gaussian_step import (
    Denoised,
    DiffusionSchedule,
    StepOptions,
    column,
    predicted_original,
    read_scheduler,
    refuse_foreign_options,
)

# Of stock LCMScheduler and of the published LCM_Dreamshaper_v7.
DEFAULTS: dict[str, Any] = {"original_inference_steps": 50, "timestep_scaling": 10.0, "clip_sample": False}


@dataclass(frozen=True)
class LCM(DiffusionSchedule):
    """The consistency model's own sampler.

    Attributes:
        skip, out: float32 ``[T]``, the boundary-condition scalings c_skip and c_out of each step.
    """

    skip: Tensor
    out: Tensor

    sampler = "lcm"

    @classmethod
    def build(cls, scheduler_config: Mapping[str, Any], steps: int, options: StepOptions) -> Self:
        from diffusers import LCMScheduler

        check_sampler(scheduler_config, cls.sampler)
        config, overruled = read_scheduler(scheduler_config, DEFAULTS, steps, options)
        why = ": it re-injects fresh noise at its own timesteps"
        refuse_foreign_options(cls.sampler, options, ("std_floor",), why)
        if steps > config["original_inference_steps"]:
            raise UsageError(
                f"{steps} steps asked for; this consistency model was distilled on "
                f"{config['original_inference_steps']} timesteps and samples in at most as many."
            )
        stock = LCMScheduler(**config)
        stock.set_timesteps(steps)
        timesteps, alphas = stock.timesteps, stock.alphas_cumprod
        prev = torch.cat([timesteps[1:], torch.tensor([-1])])
        alpha_prev = torch.where(prev >= 0, alphas[prev.clamp(min=0)], torch.ones(()))
        scalings = [stock.get_scalings_for_boundary_condition_discrete(t) for t in timesteps.tolist()]
        skip, out = torch.tensor(scalings).unbind(1)
        resolved = config | {"sampler": cls.sampler, "steps": steps, "overruled": overruled}
        return cls(
            timesteps=timesteps,
            prev_timesteps=prev,
            alpha_t=alphas[timesteps],
            alpha_prev=alpha_prev,
            eta=1.0,
            prediction_type=config["prediction_type"],
            std_floor=options.std_floor,
            resolved=resolved | {"std_floor": options.std_floor},
            skip=skip,
            out=out,
        )

    def std(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard deviation of each step, ``[T]``: sqrt(1 - abar_p), 0 for the last unless there is a floor."""
        return ((1 - self.alpha_prev.to(dtype)) ** 0.5).clamp(min=self.std_floor)

    def denoise(self, model_output: Tensor, sample: Tensor, index: Tensor) -> Denoised:
        """As :meth:`Schedule.denoise`; ``x0`` is the consistency function's value."""
        alpha_t = column(self.alpha_t, index, sample)
        x0 = predicted_original(self.prediction_type, model_output, sample, alpha_t)
        original = column(self.out, index, sample) * x0 + column(self.skip, index, sample) * sample
        mean = self.mean_from_original(original, sample, index)
        return Denoised(mean=mean, std=column(self.std(sample.dtype), index, sample), x0=original)

    def mean_from_original(self, x0: Tensor, sample: Tensor, index: Tensor) -> Tensor:
        return column(self.alpha_prev, index, sample) ** 0.5 * x0

    def gains(self) -> Tensor:
        alpha_t, alpha_prev = self.alpha_t.double(), self.alpha_prev.double()
        per_output = {
            "epsilon": (1 - alpha_t).sqrt() / alpha_t.sqrt(),
            "v_prediction": (1 - alpha_t).sqrt(),
            "sample": torch.ones_like(alpha_t),
        }
        return alpha_prev.sqrt() * self.out.double() * per_output[self.prediction_type] / self.std(torch.float64)

    def deterministic(self) -> Self:
        raise UsageError("a consistency model's sampler throws fresh noise at every step: it has no deterministic one.")

    def deterministic_steps(self) -> set[int]:
        return set() if self.std_floor else {self.num_steps - 1}

    def zero_std_advice(self) -> str:
        return (
            "A consistency model's last step is deterministic, so at one step there is nothing to learn from. Use "
            "schedule.steps of 2 or more, or make the last step random, e.g. --set schedule.std_floor=0.01."
        )
