"""The settings of a run, section by section: names, meaning, valid values and defaults, each declared once.

Everything here can change a number and is therefore part of a run's identity, except ``Evaluation`` (a checkpoint may
be judged many times), ``Runtime`` (where and how fast) and single fields marked ``Execution``. How layers of settings
are merged is in ``config``.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from sdpo_bench.api import Added, Execution

DEFAULT_MODEL = "emoji-turbo"
"""The embedded model, which needs no download."""

MOST = 2**31 - 1
"""Largest whole number of any setting, plugins' own included; nothing that can be done comes near it."""

MOST_IMAGES = 10_000
"""Most images of one prompt, in an evaluation or a grid; standard errors are far below any difference then."""

Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
Guidance = Annotated[float, Ge(1), Le(1000)]
"""Pictures are usual up to 30; with what is larger still, latents overflow."""
GuidanceGradient = Literal["both", "conditional"]
Count = Annotated[int, Ge(1)]
Steps = Annotated[int, Ge(1), Le(1000)]
Images = Annotated[int, Ge(1), Le(MOST_IMAGES)]
Sigma = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True)
class ModelSettings:
    """The base model and its adapter."""

    name: str = DEFAULT_MODEL
    """Known model, local pipeline folder or hub id (``sdpo-bench list models``)."""
    revision: str | None = None
    """Hub revision; the commit it resolves to is recorded with the run."""
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"
    """Compute dtype of frozen weights; LoRA weights and log-probabilities are always float32. ``tf32`` is float32 whose
    products an NVIDIA GPU rounds to 10 bits; ``fp32`` rounds nowhere, convolutions included. ``fp16`` trains with a
    dynamic loss scale, as the official code does."""
    guidance_scale: Guidance = 1.0
    """Guidance, in sampling and training alike; 1 is none (SDPO). Classifier-free, or an input of a guidance-distilled
    denoiser as an embedding."""
    resolution: Annotated[int, Ge(8), Le(8192)] | None = None
    """Side of the pictures in pixels; unset: the model's own. SDXL models also take it as an input."""
    text_tokens: Added[Annotated[int, Ge(0), Le(512)] | None] = None
    """Tokens of a prompt for a text encoder that leaves their number free (T5, Qwen), or of the zeros that stand for a
    missing T5; unset: the stock pipeline's (SD3 256, FLUX.1 256 or 512, Z-Image 512; Flow-GRPO takes 128 for SD3.5)."""
    gradient_checkpointing: Execution[bool] = False
    """Recompute the denoiser's activations in the backward pass: less memory, a third more time, equal numbers."""
    channels_last: Execution[bool] = False
    """Keep denoiser and autoencoder in the memory order that tensor cores read: faster convolutions on GPUs in half
    precision, the same numbers up to rounding."""
    compile: Execution[str] = ""
    """Backend of ``torch.compile`` for the denoiser, e.g. ``inductor``; empty: not compiled. Takes minutes at the
    start, gives the same numbers up to rounding."""
    cpu_offload: Execution[bool] = False
    """Text encoders, autoencoder and trajectories wait in CPU memory while they have nothing to do: less device memory,
    the same numbers."""
    lora_rank: Annotated[int, Ge(1), Le(4096)] = 4
    """Rank of the adapter (official code: 4)."""
    lora_alpha: Positive = 4.0
    """Scale of the adapter times rank (official code: equal to the rank)."""
    lora_targets: Annotated[tuple[str, ...], MinLen(1)] = ("to_q", "to_k", "to_v", "to_out.0")
    """Modules of the denoiser that get an adapter (official code: attention projections); a transformer's default is
    that of its family."""


@dataclass(frozen=True)
class ScheduleSettings:
    """Denoising steps of the training trajectories."""

    steps: Steps = 50
    """T (paper: 50)."""
    sampler: Literal["ddim", "lcm", "flow"] = "ddim"
    """Sampler family: stochastic DDIM (the paper's); a latent consistency model's own multistep sampler, whose last
    step is deterministic and therefore not trained (unless ``std_floor`` makes it random); or the Euler steps of a
    flow-matching model, whose last step is never trained. Such a model chooses ``flow`` by itself."""
    eta: NonNegative = 1.0
    """Noise of a step. DDIM: 0 deterministic to 1 ancestral (paper: 1). Flow models: the noise level of ``sde``, 0.7
    unless set (Flow-GRPO and MixGRPO: 0.7; Flow-GRPO-Fast: 0.8); at most 1 under ``cps``."""
    spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    """Placement of timesteps (SD-Turbo: trailing). Flow models: sigmas 1 to 1/T (``trailing``: FLUX, Qwen-Image,
    Z-Image) or the scheduler's own (``linspace``: Stable Diffusion 3, which chooses it by itself), then shifted."""
    prev_timestep: Literal["grid", "official"] = "grid"
    """Where a step lands: the next timestep of the list, or the official ``t - 1000 // T``."""
    std_floor: NonNegative = 0.0
    """Lower bound of a step's standard deviation; 0 refuses schedules with deterministic steps."""
    sde: Literal["cps", "flow", "dance", "ode"] = "cps"
    """How a flow model's steps become random: coefficients-preserving (Flow-CPS), Flow-GRPO's SDE, DanceGRPO's, or not
    at all (``ode``: for methods without log-probabilities). CPS is the one that keeps few steps at their noise
    level."""
    sde_steps: str = "all"
    """Which of a flow model's steps are random and trained: ``all`` but the last, ``first:K``, ``random:W`` (drawn for
    each epoch), ``random:W:K`` (within the first K steps: Flow-GRPO-Fast) or ``window:W:EPOCHS`` (moves on by one step
    every EPOCHS, 25 if left out). The others follow the ODE."""
    cps_log_prob: Literal["gaussian", "official"] = "gaussian"
    """Log-probability of a CPS step: the Gaussian's, or the official code's ``-(x' - mean)^2`` without ``1/(2 std^2)``,
    whose clip ranges mean something else."""
    sigmas: tuple[Sigma, ...] = ()
    """A distilled flow model's own list of sigmas, descending, one a step, before the scheduler's shift; empty: by
    ``spacing``."""


FLOW_SETTINGS = ("sde", "sde_steps", "cps_log_prob", "sigmas")
"""Settings of the schedule that only the sampler ``flow`` has."""


def schedule_data(schedule: ScheduleSettings) -> dict[str, Any]:
    """A schedule as its identity has it: without settings that its sampler does not have."""
    data = asdict(schedule)
    return {key: value for key, value in data.items() if schedule.sampler == "flow" or key not in FLOW_SETTINGS}


@dataclass(frozen=True)
class SampleSettings:
    """What is sampled in one epoch."""

    prompts: str = "simple-animals"
    """Prompt set name or text file, one prompt a line."""
    images_per_epoch: Annotated[int, Ge(1), Le(1_000_000)] = 256
    """Images (trajectories) sampled for one epoch over all processes, so that methods see equal numbers
    whatever their group size (official: 32 pairs on each of 4 GPUs)."""
    draw: Literal["random", "cycle"] = "random"
    """Prompts with replacement (official), or in a shuffled cycle."""


@dataclass(frozen=True)
class AdvantageSettings:
    """From step rewards to advantages."""

    normalisation: Literal["per-step-prompt", "per-prompt", "per-step", "batch", "group", "none"] = "per-step-prompt"
    """What a return is compared with (paper: per-step-prompt; GRPO: the members of its group)."""
    gamma: Annotated[float, Ge(0), Le(1)] = 0.99
    """Discount of later rewards (paper: 0.99)."""
    clip: NonNegative = 5.0
    """Advantages are clipped to this magnitude; 0 is no clipping (official code: 5)."""
    buffer_size: Count = 32
    """Samples remembered for each prompt (official code: 32)."""
    min_count: Count = 16
    """Samples of a prompt before its own statistics are used (official code: 16); at most ``buffer_size``."""
    std: Added[Literal["group", "batch"]] = "group"
    """What ``normalisation = group`` divides by: the standard deviation of the group, or of all images of the epoch at
    that step (``global_std`` of Flow-GRPO and DiffusionNFT, with their epsilon of 1e-4)."""
    rewards: Added[Literal["summed", "decoupled", "gdpo"]] = "summed"
    """Of a weighted sum of rewards: normalise the sum, or each reward by itself and add the advantages with the sum's
    weights (``decoupled``: MixGRPO's code); ``gdpo`` then normalises that sum over all images of the epoch (GDPO,
    arXiv 2601.05242)."""


@dataclass(frozen=True)
class UpdateSettings:
    """Gradient updates from one epoch's trajectories."""

    order: Literal["step-shuffled", "accumulated"] = "step-shuffled"
    """An optimiser step after single denoising steps (SDPO), or after whole trajectories (DDPO, D3PO)."""
    step_weight: Literal["official", "skip-last", "equal-gain", "noise-level"] = "official"
    """Weight of each denoising step's log-ratio: 1, 1 but 0 for the last, inverse to its gradient gain, or proportional
    to its noise (TempFlow-GRPO). A step of weight 0 is not trained at all, neither by its log-ratio nor by a KL
    penalty: skip-last leaves out the last of few steps, where most of the KL to the base model arises."""
    minibatch: Count = 8
    """Prompt groups in a minibatch, over all processes."""
    accumulation: Count = 8
    """Minibatches whose gradients are averaged for one optimiser step."""
    inner_epochs: Count = 1
    """Passes over one epoch's trajectories."""
    lr: Positive = 1e-4
    """AdamW learning rate (official: 1e-4 aesthetic, 5e-5 to 6e-5 others)."""
    betas: tuple[Annotated[float, Ge(0), Lt(1)], Annotated[float, Ge(0), Lt(1)]] = (0.9, 0.999)
    """AdamW momentum terms."""
    weight_decay: NonNegative = 1e-4
    """AdamW weight decay (official code: 1e-4)."""
    epsilon: Positive = 1e-8
    """AdamW epsilon."""
    max_grad_norm: Positive = 1.0
    """Gradient norm is clipped to this (official code: 1)."""
    guidance_gradient: Added[GuidanceGradient] = "both"
    """What is differentiated of a prediction with classifier-free guidance: both branches (SDPO, DDPO, D3PO,
    DanceGRPO), or the conditional one alone, the other taken as a constant (Flow-GRPO at ac4c86e, DGPO). Costs are the
    same."""


@dataclass(frozen=True)
class BudgetSettings:
    """Where training stops."""

    axis: Literal["images", "denoiser_calls", "reward_calls", "optimiser_steps", "seconds"] = "images"
    """What is counted; all methods of a comparison stop at the same amount of it."""
    amount: Positive = 25600
    """How much of it (paper, aesthetic: 100 epochs of 256 images)."""


@dataclass(frozen=True)
class EvaluationSettings:
    """How checkpoints are judged; never the training sampler's settings."""

    steps: Annotated[tuple[Steps, ...], MinLen(1)] = (1, 2, 4, 8, 16, 50)
    """Numbers of denoising steps; each is a run of its own (paper: 1, 2, 4, 8, 16, 50)."""
    train: str = "simple-animals"
    """Prompt set of the ``train`` split (the prompts of training)."""
    validation: str = ""
    """Prompt set of the ``validation`` split; empty: not evaluated."""
    unseen: str = ""
    """Prompt set of the ``unseen`` split; empty: not evaluated."""
    images_per_prompt: Images = 4
    """Images of every prompt and step count."""
    rewards: tuple[str, ...] = ()
    """Rewards scored besides the trained one (held-out scores); ``variety:NAME`` measures how different a prompt's
    pictures are by the features of that reward's network."""
    sampler: Literal["ddim", "lcm", "flow"] = "ddim"
    """Family of the evaluation sampler; a flow-matching model chooses ``flow`` by itself."""
    eta: NonNegative = 1.0
    """Noise of the evaluation sampler. Flow models: 0, the deterministic ODE, unless set; above 0 it is that of CPS."""
    spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    """Placement of its timesteps."""
    sigmas: Added[tuple[Sigma, ...]] = ()
    """A distilled flow model's own sigmas, used at the number of steps that is its length; others by ``spacing``."""
    guidance_scale: Guidance = 1.0
    """Its classifier-free guidance."""
    image: Literal["sample", "predicted"] = "sample"
    """Decode the sample that a k-step run returns, or the predicted original of its last step."""
    noise_bank: Annotated[int, Ge(0)] = 0
    """Number of the noise bank; equal numbers give every method and the base model the same noise."""
    every: Annotated[int, Ge(0)] = 0
    """Epochs between two points of the learning curve; 0: no curve. The base model and the last epoch are always
    points. Their cost is not counted for the training; they change no number of it."""
    curve_steps: Annotated[tuple[Steps, ...], MinLen(1)] = (1, 4)
    """Numbers of denoising steps of a point."""
    curve_images_per_prompt: Images = 1
    """Images of every prompt and step count of a point."""
    curve_prompts: Annotated[int, Ge(0)] = 0
    """Most prompts of the train split and of the unseen split in a point, drawn from a fixed seed; 0: all of them."""
    curve_rewards: tuple[str, ...] = ()
    """Held-out rewards of a point besides the trained one; cheap ones, since every point asks them."""


CURVE_KEYS = frozenset(f"eval.{name}" for name in EvaluationSettings.__dataclass_fields__ if "curve_" in name) | {
    "eval.every"
}
"""Settings of the learning curve, which is measured during training."""


@dataclass(frozen=True)
class CheckpointSettings:
    """Which checkpoint of a run is its result."""

    choose: Literal["last", "validation", "before-collapse"] = "last"
    """The last one, the one that scores best on validation prompts under the trained reward, or the best of those
    whose pictures had not yet collapsed (``guard.*``)."""
    prompts: str = ""
    """Prompt set of the choice; none of them may be among the prompts that are reported."""
    every: Count = 5
    """Epochs between two candidates; the last epoch is always one."""
    steps: Annotated[tuple[Steps, ...], MinLen(1)] = (1, 4)
    """Numbers of denoising steps whose mean score decides."""
    images_per_prompt: Images = 1
    """Images of every prompt and step count."""


@dataclass(frozen=True)
class GuardSettings:
    """From where on a run's log means that the policy collapses; warnings only, except ``stop``.

    Part of a run's identity only where ``checkpoint.choose = before-collapse``.
    """

    flat: Execution[Share] = 0.5
    """Share of an epoch's pictures that are one colour (standard deviation of luminance below 0.02)."""
    dark: Execution[Share] = 0.02
    """Mean brightness of an epoch's pictures at or below which they are black."""
    diversity: Execution[Share] = 0.25
    """Distance between pictures, as a part of what it was in the first epoch."""
    kl: Execution[Positive] = 60.0
    """KL to the base model: nats per latent element, summed over the steps of a trajectory. Chosen on the 564 runs
    under ``results/reference``: trained on ``emoji-align``, runs whose reward and ``emoji-accuracy`` rise reach 53
    (``draft``; long trainings of DDPO 32), and the two that broke end at 156 and 201. Trained on the size of a JPEG
    file, pictures become alike from 20 on, which ``guard.diversity`` and held-out scores show; a KL does not."""
    clip_fraction: Execution[Share] = 0.999
    """Share of samples whose importance ratio is clipped."""
    base_clip_fraction: Execution[Share] = 0.999
    """Share of samples whose ratio to the base model is clipped (D3PO); they give no gradient."""
    clip_at_start: Execution[Share] = 0.01
    """The same before an epoch's first update, where every ratio should be 1."""
    ratio_at_start: Execution[Positive] = 0.01
    """Largest deviation of an importance ratio from 1 before an epoch's first update."""
    stop: Execution[bool] = True
    """Stop a run all of whose pictures have become one colour. It fails, unless ``checkpoint.choose = before-collapse``
    has a checkpoint from before."""


@dataclass(frozen=True)
class EmaSettings:
    """Exponential moving average of the adapter, which is what a run delivers where it keeps one: evaluation, export
    and the choice of a checkpoint look at the average, sampling and learning at the newest weights."""

    decay: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Share that the average keeps at each optimiser step; 0: no average (SDPO). DiffusionNFT: 0.9. Flow-GRPO: 0.9
    after every eighth optimiser step, which is 0.97 to 0.99 a step."""
    warmup: bool = True
    """Keep at most (1 + n) / (10 + n) at step n, so that the untrained adapter is forgotten."""


@dataclass(frozen=True)
class Runtime:
    """Where and how fast; changes no number."""

    out: Path = Path("results")
    """Results folder; runs live in its ``runs/``."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``."""
    micro_batch: Count = 64
    """Most latents in one denoiser call."""
    checkpoint_every: Count = 5
    """Epochs between checkpoints."""
    threads: Annotated[int, Ge(0)] = 0
    """CPU threads of torch; 0: one for denoisers below 5 M parameters, which gain nothing from a second one, and
    torch's default for larger ones."""
    reward_timeout: NonNegative = 1800.0
    """Seconds that one reward call (at most ``micro_batch`` images) may take before the run fails; 0: no limit."""
    async_rewards: bool = False
    """Score one batch in a thread while the next is decoded: worth it where the reward is elsewhere than the model."""
    processes: Annotated[int, Ge(0)] = 1
    """2: a second process scores the base model while the run trains. 0: where a core is idle."""


TrackerName = Literal["tensorboard", "wandb", "trackio", "swanlab", "mlflow"]


@dataclass(frozen=True)
class TrackSettings:
    """Experiment trackers beside a run; they change no number and are no part of its identity."""

    to: tuple[TrackerName, ...] = ()
    """Trackers, as ``--track``; each needs the extra of its name."""
    project: str = "sdpo-bench"
    """Project (of MLflow: experiment) that runs are collected in."""
    name: str = ""
    """Name of the run in the tracker; empty: the run id."""
    images: bool = True
    """Track the picture grid of base beside tuned."""


@dataclass(frozen=True)
class PluginChoice:
    """A plugin by name, with its settings as validated plain data."""

    name: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class RunConfig:
    """One fully resolved run: nothing is left to a default that lives elsewhere."""

    seed: int
    method: PluginChoice
    reward: PluginChoice
    model: ModelSettings
    schedule: ScheduleSettings
    sample: SampleSettings
    advantage: AdvantageSettings | None
    update: UpdateSettings
    budget: BudgetSettings
    eval: EvaluationSettings
    guard: GuardSettings = GuardSettings()
    checkpoint: CheckpointSettings | None = None
    """None: the last checkpoint, so that nothing about a choice is part of the identity."""
    ema: EmaSettings | None = None
    """None: no average is kept, so that nothing about one is part of the identity."""


SECTIONS: dict[str, type] = {
    "model": ModelSettings,
    "schedule": ScheduleSettings,
    "sample": SampleSettings,
    "advantage": AdvantageSettings,
    "update": UpdateSettings,
    "budget": BudgetSettings,
    "eval": EvaluationSettings,
    "checkpoint": CheckpointSettings,
    "guard": GuardSettings,
    "ema": EmaSettings,
}
