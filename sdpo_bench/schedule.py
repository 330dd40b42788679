"""Denoising as a Markov decision process: timesteps, the Gaussian of one step, its log-probability, and a lint.

One step of stochastic DDIM (Song et al. 2021, eq. 12 and 16) is a Gaussian policy over the next latents. Everything a
policy-gradient method needs of the sampler is here, in float32 or float64, as pure functions of tensors.
Index ``i = 0..T-1`` counts steps in sampling order, ``i = 0`` being the noisiest.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from sdpo_bench.errors import UsageError

Spacing = Literal["trailing", "leading", "linspace"]
PrevRule = Literal["grid", "official"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]

# What the schedule takes from a pipeline's scheduler file, with the value used where the file is silent. The last two
# are SD-Turbo's; DDIM's own defaults (True, True) would clamp x0 and make the last step deterministic.
SCHEDULER_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
}


@dataclass(frozen=True)
class Denoised:
    """The Gaussian of one denoising step: ``mean``, ``x0`` like the latents ``[n, C, h, w]``, ``std [n, 1, 1, 1]``."""

    mean: Tensor
    std: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Schedule:
    """A fixed list of T denoising steps.

    Attributes:
        timesteps: int64 ``[T]``, descending.
        prev_timesteps: int64 ``[T]``, where each step lands; -1 stands for "fully denoised" (alpha = 1).
        alpha_t, alpha_prev: float32 ``[T]``, cumulative alpha products at those timesteps.
        eta: 0 is deterministic DDIM, 1 is ancestral (DDPM-like) noise.
        std_floor: lower bound of the step's standard deviation; 0 leaves it as computed.
        resolved: every scheduler setting that made these numbers, for the record of a run.
    """

    timesteps: Tensor
    prev_timesteps: Tensor
    alpha_t: Tensor
    alpha_prev: Tensor
    eta: float
    prediction_type: PredictionType
    std_floor: float
    resolved: Mapping[str, Any]

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    def std(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard deviation of each step, ``[T]`` (DDIM eq. 16 times eta)."""
        alpha_t, alpha_prev = self.alpha_t.to(dtype), self.alpha_prev.to(dtype)
        variance = (1 - alpha_prev) / (1 - alpha_t) * (1 - alpha_t / alpha_prev)
        # Rounding may leave -1e-9 where the exact value is 0; a genuine floor is the caller's choice.
        return (self.eta * variance.clamp(min=0) ** 0.5).clamp(min=self.std_floor)

    def denoise(self, model_output: Tensor, sample: Tensor, index: Tensor) -> Denoised:
        """Mean, standard deviation and predicted original of step ``index`` for each row.

        Args:
            model_output, sample: ``[n, C, h, w]``, same float dtype.
            index: int64 ``[n]``, step of each row.
        """
        alpha_t = _column(self.alpha_t, index, sample)
        alpha_prev = _column(self.alpha_prev, index, sample)
        std = _column(self.std(sample.dtype), index, sample)
        x0, epsilon = self._original_and_noise(model_output, sample, alpha_t)
        direction = (1 - alpha_prev - std**2).clamp(min=0) ** 0.5
        return Denoised(mean=alpha_prev**0.5 * x0 + direction * epsilon, std=std, x0=x0)

    def mean_from_original(self, x0: Tensor, sample: Tensor, index: Tensor) -> Tensor:
        """Mean of step ``index`` whose predicted original is already known; shapes as in :meth:`denoise`."""
        alpha_t = _column(self.alpha_t, index, sample)
        alpha_prev = _column(self.alpha_prev, index, sample)
        std = _column(self.std(sample.dtype), index, sample)
        epsilon = (sample - alpha_t**0.5 * x0) / (1 - alpha_t) ** 0.5
        return alpha_prev**0.5 * x0 + (1 - alpha_prev - std**2).clamp(min=0) ** 0.5 * epsilon

    def _original_and_noise(self, output: Tensor, sample: Tensor, alpha_t: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = alpha_t**0.5, (1 - alpha_t) ** 0.5
        if self.prediction_type == "epsilon":
            return (sample - noise * output) / signal, output
        if self.prediction_type == "v_prediction":
            return signal * sample - noise * output, signal * output + noise * sample
        return output, (sample - signal * output) / noise

    def gains(self) -> Tensor:
        """``|d mean / d model_output| / std`` of each step, float64 ``[T]``.

        The gradient of a step's log-probability is this times the step's own unit noise, so it tells how loudly each
        step speaks in a policy gradient. At few steps the last one drowns the others.
        """
        alpha_t, alpha_prev = self.alpha_t.double(), self.alpha_prev.double()
        std = self.std(torch.float64)
        direction = (1 - alpha_prev - std**2).clamp(min=0).sqrt()
        per_output = {
            "epsilon": direction - alpha_prev.sqrt() * (1 - alpha_t).sqrt() / alpha_t.sqrt(),
            "v_prediction": direction * alpha_t.sqrt() - alpha_prev.sqrt() * (1 - alpha_t).sqrt(),
            "sample": alpha_prev.sqrt() - direction * alpha_t.sqrt() / (1 - alpha_t).sqrt(),
        }
        return per_output[self.prediction_type].abs() / std


def gaussian_log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """MEAN over latent dimensions of the Gaussian log-density, ``[n]`` in nats per latent element.

    The mean (not the sum) makes it independent of resolution; ``value`` is an action already taken, so no gradient
    flows through it (official ``ddim_step_with_logprob``).
    """
    squared = (value.detach() - mean) ** 2
    density = -squared / (2 * std**2) - torch.log(std) - 0.5 * math.log(2 * math.pi)
    return density.flatten(1).mean(1)


def make_schedule(
    scheduler_config: Mapping[str, Any],
    steps: int,
    *,
    eta: float = 1.0,
    spacing: Spacing = "trailing",
    prev_timestep: PrevRule = "grid",
    std_floor: float = 0.0,
) -> Schedule:
    """The schedule of ``steps`` denoising steps for a model trained with ``scheduler_config``.

    Args:
        scheduler_config: the pipeline's scheduler settings (any Stable-Diffusion-family scheduler file).
        prev_timestep: ``"grid"`` lands on the next timestep of the list; ``"official"`` on ``t - N // T``, which is
            what the published code does and which leaves the list where T does not divide N.

    Raises:
        UsageError: a step count outside 1..N, a negative eta, or an unknown prediction type.
    """
    from diffusers import DDIMScheduler

    config = {key: scheduler_config.get(key, default) for key, default in SCHEDULER_DEFAULTS.items()}
    total = int(config["num_train_timesteps"])
    if not 1 <= steps <= total:
        raise UsageError(f"{steps} denoising steps asked for; this model has 1 to {total}.")
    if eta < 0 or std_floor < 0:
        raise UsageError(f"eta and std_floor are 0 or more, got eta={eta}, std_floor={std_floor}.")
    if config["prediction_type"] not in get_args(PredictionType):
        raise UsageError(f"unknown prediction type '{config['prediction_type']}' in the model's scheduler file.")
    alphas = DDIMScheduler(**config).alphas_cumprod
    timesteps = spaced_timesteps(steps, total, spacing, int(config["steps_offset"]))
    last = -1 if config["set_alpha_to_one"] else 0
    prev = _previous(timesteps, total, prev_timestep, last)
    alpha_prev = torch.where(prev >= 0, alphas[prev.clamp(min=0)], torch.ones(()))
    resolved = config | {"steps": steps, "eta": eta, "spacing": spacing, "prev_timestep": prev_timestep}
    return Schedule(
        timesteps, prev, alphas[timesteps], alpha_prev, eta, config["prediction_type"], std_floor,
        resolved | {"std_floor": std_floor},
    )  # fmt: skip


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


def _column(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Per-step values as ``[n, 1, 1, 1]`` in the dtype and on the device of ``like``."""
    return values.to(like.device, like.dtype)[index.to(like.device)].view(-1, *[1] * (like.ndim - 1))


def lint(schedule: Schedule, *, needs_log_prob: bool) -> list[str]:
    """Refuse a schedule whose log-probabilities do not exist; return warnings about a legal but odd one.

    Raises:
        UsageError: duplicate timesteps, or (where log-probabilities are needed) steps with standard deviation 0.
    """
    times = schedule.timesteps.tolist()
    if len(set(times)) < len(times):
        raise UsageError(f"spacing '{schedule.resolved['spacing']}' repeats timesteps at {len(times)} steps.")
    if needs_log_prob:
        _refuse_zero_std(schedule)
    off_grid = (schedule.prev_timesteps[:-1] != schedule.timesteps[1:]).sum().item()
    if off_grid:
        return [
            f"{off_grid} of {len(times)} steps land beside the next timestep of the list "
            "(schedule.prev_timestep = 'official'; 'grid' lands on it)."
        ]
    return []


def _refuse_zero_std(schedule: Schedule) -> None:
    bad = [i for i, value in enumerate(schedule.std().tolist()) if not value > 0]
    if not bad:
        return
    if schedule.eta == 0:
        raise UsageError(
            "eta = 0 makes sampling deterministic, so log-probabilities do not exist and nothing can be learnt. "
            "Use schedule.eta > 0 (the paper uses 1)."
        )
    shown = ", ".join(f"step {i} (t = {int(schedule.timesteps[i])})" for i in bad[:4])
    raise UsageError(
        f"{shown}: the step's standard deviation is 0, so its log-probability is NaN (spacing "
        f"'{schedule.resolved['spacing']}', {schedule.num_steps} steps, steps_offset "
        f"{schedule.resolved['steps_offset']}, set_alpha_to_one {schedule.resolved['set_alpha_to_one']}). "
        "Use schedule.spacing=trailing with at most 500 steps, or set a floor, e.g. --set schedule.std_floor=0.01."
    )


def step_weights(schedule: Schedule, rule: str) -> Tensor:
    """Weight of each step's log-ratio in the loss, float32 ``[T]``.

    ``official``: 1 everywhere. ``skip-last``: 0 for the last step, whose noise cannot change the reward of the
    predicted original. ``equal-gain``: inverse to :meth:`Schedule.gains`, mean 1, so that steps speak equally loudly.
    """
    steps = schedule.num_steps
    if rule == "equal-gain":
        inverse = 1 / schedule.gains()
        return (inverse / inverse.mean()).float()
    weights = torch.ones(steps)
    if rule == "skip-last" and steps > 1:
        weights[-1] = 0.0
    return weights
