"""One denoising step as a Gaussian policy over the next latents: what every sampler family has in common.

A family (``ddim``, ``lcm``, ``flow``) says where each step lands, its mean and its standard deviation; everything else
that a policy-gradient method needs of a sampler follows from that, in float32 or float64, as pure functions of tensors.
Index ``i = 0..T-1`` counts steps in sampling order, ``i = 0`` being the noisiest.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from sdpo_bench.errors import UsageError

Spacing = Literal["trailing", "leading", "linspace"]
PrevRule = Literal["grid", "official"]
Sde = Literal["cps", "flow", "dance", "ode"]
LogProbForm = Literal["gaussian", "official"]
PredictionType = Literal["epsilon", "v_prediction", "sample"]

# What every family takes from a pipeline's scheduler file, with the value used where the file is silent.
NOISE_DEFAULTS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}

# Pixel-space settings that would distort latents; a file that says otherwise is overruled, and that is recorded.
FORCED: dict[str, Any] = {"clip_sample": False, "thresholding": False}


@dataclass(frozen=True)
class StepOptions:
    """The user's side of a schedule; see :class:`sdpo_bench.settings.ScheduleSettings`.

    ``random_steps`` are the steps that draw noise in the epoch at hand (``sde_steps.random_steps``), None all that can.
    ``ever_random`` are those that do in some epoch, None the ``random_steps``.
    """

    eta: float = 1.0
    spacing: Spacing = "trailing"
    prev_timestep: PrevRule = "grid"
    std_floor: float = 0.0
    sde: Sde = "cps"
    random_steps: Sequence[int] | None = None
    ever_random: Sequence[int] | None = None
    cps_log_prob: LogProbForm = "gaussian"
    sigmas: tuple[float, ...] = ()


@dataclass(frozen=True)
class Denoised:
    """The Gaussian of one denoising step: ``mean``, ``x0`` like the latents ``[n, C, h, w]``, ``std [n, 1, 1, 1]``."""

    mean: Tensor
    std: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Schedule(ABC):
    """A fixed list of T denoising steps.

    Attributes:
        timesteps: ``[T]``, descending, as the denoiser takes them: int64 of a diffusion model, float32 of a flow model.
        eta: noise of the steps, 0 is deterministic.
        resolved: every scheduler setting that made these numbers, for the record of a run.
    """

    timesteps: Tensor
    eta: float
    resolved: Mapping[str, Any]

    sampler: ClassVar[str]
    """Name of the family."""

    @classmethod
    @abstractmethod
    def build(cls, scheduler_config: Mapping[str, Any], steps: int, options: StepOptions) -> Self:
        """The schedule of ``steps`` steps for a model trained with ``scheduler_config``.

        Raises:
            UsageError: a step count the family cannot give, or options that would have no effect on it.
        """

    @property
    def num_steps(self) -> int:
        return len(self.timesteps)

    @abstractmethod
    def std(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard deviation of each step, ``[T]``."""

    @abstractmethod
    def denoise(self, model_output: Tensor, sample: Tensor, index: Tensor) -> Denoised:
        """Mean, standard deviation and predicted original of step ``index`` for each row.

        Args:
            model_output, sample: ``[n, C, h, w]``, same float dtype.
            index: int64 ``[n]``, step of each row.
        """

    @abstractmethod
    def mean_from_original(self, x0: Tensor, sample: Tensor, index: Tensor) -> Tensor:
        """Mean of step ``index`` whose predicted original is already known; shapes as in :meth:`denoise`."""

    @abstractmethod
    def gains(self) -> Tensor:
        """``|d mean / d model_output| / std`` of each step, float64 ``[T]``; infinite where std is 0.

        The gradient of a step's log-probability is this times the step's own unit noise, so it tells how loudly each
        step speaks in a policy gradient. At few steps the last one drowns the others.
        """

    def log_prob(self, value: Tensor, step: Denoised) -> Tensor:
        """Log-probability ``[n]`` of the latents ``value [n, C, h, w]`` under a step (:func:`gaussian_log_prob`)."""
        return gaussian_log_prob(value, step.mean, step.std)

    @abstractmethod
    def noise_levels(self) -> Tensor:
        """Noise level of each step's state in the coordinates of flow matching, float32 ``[T]`` in (0, 1]; 1 is noise
        alone."""

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """State of step ``index [n]`` for final samples and noise ``[n, C, h, w]``."""

    @abstractmethod
    def deterministic(self) -> Self:
        """The same steps without noise: what a state leads to if nothing random happens any more.

        Raises:
            UsageError: the family has no such sampler.
        """

    def deterministic_steps(self) -> set[int]:
        """Steps that are deterministic by the family's own design: they draw nothing, so they have log-probability 0
        by convention (:func:`gaussian_log_prob`) and are not trained (``schedule.step_weights``)."""
        return set()

    def at_every_place(self) -> Self:
        """The same steps with noise in all that draw it in some epoch: of a flow model's window at all its places."""
        return self

    def decision_steps(self) -> Tensor:
        """Steps among which an epoch's order of updates is drawn, int64 ascending.

        All of them, though a consistency model's last one has weight 0: orders of earlier runs stay as they were.
        """
        return torch.arange(self.num_steps)

    def warnings(self) -> list[str]:
        """What is legal but odd about these steps, in words."""
        return []

    def zero_std_advice(self) -> str:
        """What to change where steps have standard deviation 0."""
        return "Set a floor, e.g. --set schedule.std_floor=0.01."


@dataclass(frozen=True)
class DiffusionSchedule(Schedule):
    """Steps between the noise levels of a model that was trained with betas.

    Attributes:
        prev_timesteps: int64 ``[T]``, where each step lands; -1 stands for "fully denoised" (alpha = 1).
        alpha_t, alpha_prev: float32 ``[T]``, cumulative alpha products at those timesteps.
        std_floor: lower bound of the step's standard deviation; 0 leaves it as computed.
    """

    prev_timesteps: Tensor
    alpha_t: Tensor
    alpha_prev: Tensor
    prediction_type: PredictionType
    std_floor: float

    def noise_levels(self) -> Tensor:
        """As :meth:`Schedule.noise_levels`: sqrt(1 - abar) / (sqrt(abar) + sqrt(1 - abar))."""
        signal, spread = self.alpha_t.sqrt(), (1 - self.alpha_t).sqrt()
        return spread / (signal + spread)

    def add_noise(self, clean: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        alpha = column(self.alpha_t, index, clean)
        return alpha**0.5 * clean + (1 - alpha) ** 0.5 * noise

    def warnings(self) -> list[str]:
        off_grid = (self.prev_timesteps[:-1] != self.timesteps[1:]).sum().item()
        if not off_grid:
            return []
        return [
            f"{off_grid} of {self.num_steps} steps land beside the next timestep of the list "
            "(schedule.prev_timestep = 'official'; 'grid' lands on it)."
        ]


def gaussian_log_prob(value: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """MEAN over latent dimensions of the Gaussian log-density, ``[n]`` in nats per latent element.

    The mean (not the sum) makes it independent of resolution; ``value`` is an action already taken, so no gradient
    flows through it (official ``ddim_step_with_logprob``). A row whose standard deviation is exactly 0 draws nothing:
    its log-probability is 0 and carries no gradient. ``lint`` rejects such steps unless the sampler has them by
    design (:meth:`Schedule.deterministic_steps`).
    """
    random = std != 0
    safe = torch.where(random, std, torch.ones_like(std))
    squared = (value.detach() - mean) ** 2
    density = -squared / (2 * safe**2) - torch.log(safe) - 0.5 * math.log(2 * math.pi)
    return torch.where(random, density, torch.zeros_like(density)).flatten(1).mean(1)


def gaussian_kl(mean: Tensor, base_mean: Tensor, std: Tensor) -> Tensor:
    """KL of two Gaussians with the same standard deviation, mean over latent elements: ``[n]`` nats an element.

    Rows whose standard deviation is exactly 0 count 0, as in :func:`gaussian_log_prob`.
    """
    random = std != 0
    safe = torch.where(random, std, torch.ones_like(std))
    kl = (mean - base_mean) ** 2 / (2 * safe**2)
    return torch.where(random, kl, torch.zeros_like(kl)).flatten(1).mean(1)


def predicted_original(kind: PredictionType, output: Tensor, sample: Tensor, alpha_t: Tensor) -> Tensor:
    """x0 from a model output of the given kind."""
    signal, noise = alpha_t**0.5, (1 - alpha_t) ** 0.5
    if kind == "epsilon":
        return (sample - noise * output) / signal
    if kind == "v_prediction":
        return signal * sample - noise * output
    return output


def read_scheduler(
    scheduler_config: Mapping[str, Any], defaults: Mapping[str, Any], steps: int, options: StepOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a scheduler file that a family uses, and the ones it overrules (with the file's value).

    Raises:
        UsageError: a step count outside 1..N, a negative eta or floor, or an unknown prediction type.
    """
    config = {key: scheduler_config.get(key, default) for key, default in (NOISE_DEFAULTS | dict(defaults)).items()}
    total = int(config["num_train_timesteps"])
    if not 1 <= steps <= total:
        raise UsageError(f"{steps} denoising steps asked for; this model has 1 to {total}.")
    if options.eta < 0 or options.std_floor < 0:
        raise UsageError(f"eta and std_floor are 0 or more, got eta={options.eta}, std_floor={options.std_floor}.")
    if config["prediction_type"] not in get_args(PredictionType):
        raise UsageError(f"unknown prediction type '{config['prediction_type']}' in the model's scheduler file.")
    overruled = {k: scheduler_config[k] for k, value in FORCED.items() if scheduler_config.get(k, value) != value}
    return config | {k: v for k, v in FORCED.items() if k in config}, overruled


def refuse_foreign_options(sampler: str, options: StepOptions, known: Sequence[str], why: str = "") -> None:
    """Options of other samplers, which would have no effect on this one.

    Args:
        known: names of the options that this sampler has.
        why: what it does instead, in words.

    Raises:
        UsageError: names the first such option.
    """
    plain = StepOptions()
    for name, value in vars(options).items():
        if name not in known and value != getattr(plain, name):
            raise UsageError(f"the sampler '{sampler}' has no {name} (got {value}){why}. Leave {name} out.")


def column(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Per-step values as ``[n, 1, 1, 1]`` in the dtype and on the device of ``like``."""
    return values.to(like.device, like.dtype)[index.to(like.device)].view(-1, *[1] * (like.ndim - 1))
