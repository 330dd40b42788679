"""The whole plugin contract: what a method and a reward must say about themselves, and the data they meet.

A method says which trajectories it wants, which reward signal it learns from and what the loss of one minibatch is.
The engine owns everything else: sampling, reward queries, the order of updates, the optimiser, the budget, logging,
checkpoints. A reward maps images and prompts to numbers. Both are one file with one class and a frozen settings
dataclass beside it; see ``docs/add-a-method.md``.

Shapes use the field's letters: ``N`` prompt groups, ``G`` members (trajectories) of a group, ``T`` denoising steps in
sampling order, ``b`` groups of a minibatch, ``K`` steps of a minibatch.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from torch import Tensor, nn

RewardMode = Literal["sparse", "predicted", "full", "completion", "turning-point", "branch"]
COMPLETED_MODES: tuple[str, ...] = ("completion", "turning-point", "branch")
"""Reward modes that score where a state leads without further noise (``sdpo_bench.scoring.dense_rewards``)."""
SINGLE_STEP_MODES: tuple[str, ...] = ("turning-point", "branch")
"""Those of them whose rewards do not add up to a return: each belongs to its step alone (``advantage.gamma=0``)."""
RewardGuard = Literal["convex", "official"]
Granularity = Literal["step", "trajectory", "noised", "sample"]
SampleFeatures = Literal["latent", "pixels", "scorer"]
Signal = Literal["advantage", "preference", "gradient", "none"]


_EXECUTION = "execution only"
T = TypeVar("T")
Execution = Annotated[T, _EXECUTION]
"""Type of a setting that says where or how fast, or whose effect is in ``full_version``: ``Execution[int]``. Such
settings are recorded with a run and are no part of its identity."""


_ADDED = "added later"
Added = Annotated[T, _ADDED]
"""Type of a setting that came after the first runs of its class: ``Added[float]``. While it has its default value it is
no part of a run's record and identity, so that runs from before it keep their ids. The default can never change."""


@dataclass(frozen=True)
class NoSettings:
    """Settings of a plugin that has none."""


@dataclass(frozen=True)
class StepRewardSettings:
    """Settings of a method that can learn from a reward of each step; its own settings inherit from this."""

    reward: Added[RewardMode] = "sparse"
    """The final image's reward alone, or a reward of each step: SDPO's predicted from three queries, queried at every
    step, or from deterministic completions what the step gained (DenseGRPO), turning points (TP-GRPO) or branches
    (after TempFlow-GRPO). A step's return is the discounted sum from there on: see advantage.gamma, which turning
    points and branches need to be 0."""


def execution_settings(settings: type) -> frozenset[str]:
    """Names of the fields of a settings dataclass that are marked :data:`Execution`."""
    return _marked(settings, _EXECUTION)


def without_added_defaults(settings: Any) -> dict[str, Any]:
    """Plain data of a settings dataclass without fields marked :data:`Added` that have their default value."""
    plain = added_defaults(type(settings))
    return {key: value for key, value in asdict(settings).items() if key not in plain or value != plain[key]}


def _changed_settings(settings: Any) -> list[str]:
    """``NAME=VALUE`` of the settings that can change a number and have not their default value."""
    if settings is None:  # a reward that was made by hand
        return []
    execution, changed = execution_settings(type(settings)), []
    for f in fields(settings):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        value = getattr(settings, f.name)
        if f.name not in execution and value != default:
            changed.append(f"{f.name}={value}")
    return changed


def added_defaults(settings: type) -> dict[str, Any]:
    """What a record means by leaving them out: the default values of the fields that are marked :data:`Added`."""
    added = _marked(settings, _ADDED)
    return {f.name: f.default for f in fields(settings) if f.name in added}


@lru_cache(maxsize=256)  # half of the time that it takes to plan a suite
def _marked(settings: type, mark: str) -> frozenset[str]:
    hints = get_type_hints(settings, include_extras=True)
    return frozenset(name for name, hint in hints.items() if get_origin(hint) is Annotated and mark in get_args(hint))


@dataclass(frozen=True)
class Minibatch:
    """What the loss sees: ``b`` groups of ``G`` members at ``K`` steps (1, or all T for trajectory-level losses).

    Methods with ``signal = "gradient"`` see no log-probabilities (K = 0) but ``final_rewards`` that carry gradients.
    Those with ``granularity = "noised"`` or ``"sample"`` need no likelihood and see none: ``log_probs`` and
    ``old_log_probs`` have K = 0, the rest has one step or, for samples, none.

    All tensors are float32 on one device. Log-probabilities are means over latent dimensions (nats per element) and
    already carry the engine's step weight: ``log_probs - old_log_probs`` and ``log_probs - ref_log_probs`` are the
    weighted log-ratios, whatever ``update.step_weight`` says.
    """

    log_probs: "Tensor"
    """``[b, G, K]`` under the current policy; carries gradients."""
    old_log_probs: "Tensor"
    """``[b, G, K]`` under the policy that sampled."""
    ref_log_probs: "Tensor | None"
    """``[b, G, K]`` under the base model (adapter off); only for methods with ``needs_reference``."""
    advantages: "Tensor | None"
    """``[b, G, K]`` normalised and clipped; only for methods with ``signal = "advantage"``."""
    rewards: "Tensor"
    """``[b, G, K]`` reward of each step as the method asked for (sparse: zero before the last step; completions: what
    the step gained, zero for steps that draw nothing)."""
    final_rewards: "Tensor"
    """``[b, G]`` reward of the final image; carries gradients where ``signal = "gradient"``."""
    steps: "Tensor"
    """int64 ``[b, K]``: step index i, 0 is the noisiest."""
    num_steps: int
    kl: "Tensor | None" = None
    """``[b, G, K]`` KL(policy step || base step) per latent element; carries gradients. 0 at steps of weight 0, which
    are not trained. Only for methods with ``needs_kl``."""
    drift: "Tensor | None" = None
    """``[b, G, K]`` KL(step of the policy that sampled || step of the current policy) per latent element,
    ``mean (mu - mu_old)^2 / (2 std^2)``; carries gradients and the engine's step weight. Only with ``needs_drift``."""
    stds: "Tensor | None" = None
    """``[b, K]`` standard deviation of each step; only with ``needs_drift``."""
    values: "Tensor | None" = None
    """``[b, G, K]`` the critic's value of the state before each step; carries gradients to the critic. Only for methods
    with a :meth:`Method.critic`."""
    old_values: "Tensor | None" = None
    """``[b, G, K]`` the same as it was when the epoch was sampled."""
    noised: "Noised | None" = None
    """Final samples with fresh noise; only for methods with ``granularity = "noised"``."""
    samples: "Tensor | None" = None
    """Final latents ``[b, G, C, h, w]``, their images ``[b, G, 3, H, W]`` or the reward's features of these
    ``[b, G, D]`` (:attr:`Method.sample_features`), which carry gradients; only with ``granularity = "sample"``."""
    ref_samples: "Tensor | None" = None
    """The same of the base model from the same noise; only with ``granularity = "sample"`` and ``needs_reference``."""


@dataclass(frozen=True)
class Noised:
    """Final samples with fresh noise on them, and what the model takes each of them for (its predicted original).

    The latents that the model sees are ``(1 - level) clean + level noise`` times a factor that its own noise schedule
    has, so ``(that - original) / level`` is the velocity of flow matching for every kind of model, and the difference
    of two velocities is that of their originals, divided by ``level``. Tensors are float32 ``[b, G, C, h, w]``.
    """

    clean: "Tensor"
    """The final samples."""
    original: "Tensor"
    """Under the current policy; carries gradients."""
    level: "Tensor"
    """``[b, 1, 1, 1, 1]`` in (0, 1]: the noise level of the denoising step ``steps`` of each group."""
    old_original: "Tensor | None" = None
    """Under the policy that sampled; only for methods with ``needs_old``."""
    ref_original: "Tensor | None" = None
    """Under the base model; only for methods with ``needs_reference``."""


@dataclass(frozen=True)
class Backprop:
    """Through which steps a gradient flows: ``depth`` consecutive ones, the last of them drawn for each group and
    update from the last ``window`` steps. More than one needs ``final_image = "predicted"``: other states than the last
    are noisy."""

    depth: int = 1
    window: int = 1


@dataclass(frozen=True)
class Critic:
    """A network that a method trains beside the policy, with the same loss and an AdamW learning rate of its own.

    ``network(latents [n, C, h, w] float32, steps int64 [n]) -> [n]``. It must be deterministic (no dropout).
    """

    network: "nn.Module"
    lr: float


@dataclass(frozen=True)
class Loss:
    """Scalar ``value`` to minimise (mean over the ``b`` groups) and detached scalars worth logging."""

    value: "Tensor"
    metrics: Mapping[str, "Tensor"] = field(default_factory=dict)


class Method(ABC):
    """A fine-tuning method. Subclass it in one file; the first line of the docstring is what ``list`` prints."""

    Settings: ClassVar[type] = NoSettings
    """Frozen dataclass of the method's own settings (``--set method.KEY=VALUE``)."""
    formula: ClassVar[str] = ""
    """The loss in one line of plain text, in the letters of ``docs/methods.md``. ``list`` reads it and ``source`` from
    the class as it is written, so it sees neither what is computed nor what is inherited."""
    source: ClassVar[str] = ""
    """Paper with its equation, and official code: ``arXiv 2411.11727, eq. 13; code OWNER/NAME``."""
    signal: ClassVar[Signal] = "advantage"
    """``advantage``: normalised returns; ``preference``: raw final rewards, no ``advantage.*`` settings; ``gradient``:
    the reward's own gradient through the last denoising steps (:meth:`backprop`), for differentiable rewards and with
    ``granularity = "trajectory"``; ``none``: nothing is trained (:class:`Search`)."""
    final_image: ClassVar[Literal["sample", "predicted"]] = "sample"
    """Image of the sparse reward: the decoded sample, or the decoded predicted original of the last step."""
    granularity: ClassVar[Granularity] = "step"
    """``step``: the loss of one step needs that step alone; ``trajectory``: it needs the sum over all steps. Two kinds
    of loss need no likelihood, so they fit every sampler and a single step: ``noised`` looks at final samples with
    fresh noise at the level of one denoising step (:class:`Noised`), ``sample`` differentiates the final latents
    through the last steps (:meth:`backprop`)."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Settings of the engine that the method changes unless the user says otherwise, e.g. ``update.order``."""

    variant_of: ClassVar[str] = ""
    """The method this one is a named variant of: settings that a preset has for that one apply to this one too."""
    fixed: ClassVar[Mapping[str, Any]] = {}
    """Settings, its own (``method.KEY``) or the engine's, that the name promises; another value is refused."""

    def __init__(self, settings: Any):
        self.settings = settings

    # What follows is read from an instance, so that a method may let its settings decide. A subclass whose answer
    # never changes writes it as a plain attribute: ``members = 2``.

    @property
    def members(self) -> int:
        """Trajectories sampled for each drawn prompt."""
        return 1

    @property
    def shared_noise(self) -> bool:
        """Whether the members of a group start from the same initial noise."""
        return False

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads ``ref_log_probs``, ``noised.ref_original`` or ``ref_samples``; costs one call of the
        base model for each sampled step, or for each sample of each update (``noised``)."""
        return False

    @property
    def needs_old(self) -> bool:
        """Whether the loss reads ``noised.old_original``; costs one call for each sample of each update."""
        return False

    @property
    def keeps_old(self) -> bool:
        """Whether the policy that samples has weights of its own (:meth:`old_decay`). Costs no call by itself."""
        return self.needs_old

    def old_decay(self, updates: int) -> float:
        """Share of its own weights that the policy that samples keeps at the end of an epoch; the rest comes from the
        policy that learns. 0: each epoch is sampled by the newest policy. Only with ``keeps_old``.

        Args:
            updates: optimiser steps since the run began.
        """
        return 0.0

    @property
    def sample_features(self) -> SampleFeatures:
        """What the loss sees of final samples (``granularity = "sample"``): their latents, their images (a decoder call
        each), or the features of the trained reward's own network (a reward call each, :meth:`Reward.features`)."""
        return "latent"

    @property
    def same_fresh_noise(self) -> bool:
        """Whether the members of a group get the same fresh noise (``granularity = "noised"``)."""
        return False

    @property
    def guided_loss(self) -> bool:
        """Whether the calls of the loss have the classifier-free guidance of sampling (``granularity = "noised"``).
        Without it the unconditional branch is neither computed nor charged."""
        return True

    @property
    def needs_kl(self) -> bool:
        """Whether the loss reads ``kl``; costs one call of the base model for each step of each update."""
        return False

    @property
    def needs_drift(self) -> bool:
        """Whether the loss reads ``drift`` and ``stds``. Costs no call: the old step is known from sampling."""
        return False

    @property
    def reward_mode(self) -> RewardMode:
        """Rewards the method learns from: what its settings say (:class:`StepRewardSettings`), else ``sparse``. The
        :data:`COMPLETED_MODES` cost denoiser calls besides sampling."""
        return self.settings.reward if isinstance(self.settings, StepRewardSettings) else "sparse"

    @property
    def reward_modes(self) -> tuple[RewardMode, ...]:
        """Values of ``method.reward`` that the loss can use; others are refused. All of them where the settings are
        :class:`StepRewardSettings`, but ``branch`` compares members, so it needs more than one, and a loss of whole
        trajectories needs rewards that add up, so it has none of :data:`SINGLE_STEP_MODES`."""
        if not isinstance(self.settings, StepRewardSettings):
            return (self.reward_mode,)
        refused = SINGLE_STEP_MODES if self.granularity == "trajectory" else () if self.members > 1 else ("branch",)
        return tuple(mode for mode in get_args(RewardMode) if mode not in refused)

    @property
    def reward_guard(self) -> RewardGuard:
        """How ``predicted`` rewards treat negative similarity weights (``sdpo_bench.scoring.dense_rewards``)."""
        return "convex"

    def critic(self, latent_shape: tuple[int, int, int], num_steps: int) -> Critic | None:
        """A fresh critic for latents of shape (C, h, w), or ``None``. The engine calls this once a run, with torch's
        generator seeded by the run's seed, and optimises, saves and restores what it gets: weights and buffers."""
        return None

    def backprop(self, num_steps: int) -> Backprop:
        """Which steps the gradient flows through; only asked where ``signal = "gradient"`` or ``granularity =
        "sample"``."""
        return Backprop()

    @abstractmethod
    def loss(self, batch: Minibatch) -> Loss:
        """Loss of one minibatch. Must not touch global state or draw random numbers; what a process has only one of
        (``plugin_guard``) is put back afterwards."""


class Search(Method):
    """A method that trains nothing and searches at inference: of the candidates that it samples for each image, the
    one with the highest trained reward is delivered. It is charged for every candidate of every evaluated image."""

    signal = "none"

    @property
    @abstractmethod
    def candidates(self) -> int:
        """Samples for each delivered image, at least 1. The first has the noise of every other method's image."""

    @abstractmethod
    def propose(self, best: "Tensor", fresh: "Tensor") -> "Tensor":
        """Noise of the next candidate.

        Args:
            best: ``[n, T + 1, C, h, w]`` noise of the best candidate so far: initial latents, then each step's.
            fresh: independent standard normal noise of the same shape.
        """

    def loss(self, batch: Minibatch) -> Loss:
        raise TypeError(f"{type(self).__name__} trains nothing")


class Reward(ABC):
    """A scalar reward of images and prompts. The first line of the docstring is what ``list`` prints."""

    Settings: ClassVar[type] = NoSettings
    version: ClassVar[str]
    """Part of every result; raise it whenever a score can change, or a changed source is refused beside old scores."""
    scale: ClassVar[str]
    """What one unit means, e.g. ``nats`` or ``cosine similarity``."""
    source: ClassVar[str]
    """Paper, code or checkpoint the definition comes from."""
    native_model: ClassVar[str]
    """Base model it is normally used with; chosen when the user names none."""
    differentiable: ClassVar[bool] = False
    """Whether gradients flow from the score to the images."""
    has_features: ClassVar[bool] = False
    """Whether :meth:`features` gives what the reward's network sees in an image."""

    commits: Mapping[str, str] = MappingProxyType({})
    """Commit of each hub repository that :meth:`load` read."""

    def __init__(self, settings: Any, device: str = "cpu"):
        self.settings = settings
        self.device = device

    def load(self) -> Any:
        """Get ready to score; called before anything is sampled, so that missing weights are found at once.

        Raises:
            MissingError: a checkpoint or package that is not here.
        """
        return self

    @property
    def full_version(self) -> str:
        """Version that results carry: ``version``, and each setting that has not its default value and is not marked
        :data:`Execution`, e.g. ``1+side=64``. Rows, base scores and remembered scores are found by it, so a reward that
        words it differently names whatever changes a score."""
        return "+".join([self.version, *_changed_settings(self.settings)])

    @property
    def filed_as(self) -> str | None:
        """Name that results carry where it is not the plugin's own: that of the reward a service computes."""
        return None

    @property
    def identity_settings(self) -> dict[str, Any]:
        """Settings that are part of a run's identity: all but those marked :data:`Execution`."""
        hidden = execution_settings(type(self.settings))
        return {key: value for key, value in asdict(self.settings).items() if key not in hidden}

    @classmethod
    def unavailable(cls) -> str | None:
        """Why the reward cannot be used on this machine, with what to type; ``None`` if it can. Must be quick."""
        return None

    def features(self, images: "Tensor") -> "Tensor":
        """Features ``[B, D]`` float32 of ``images`` (as :meth:`__call__` takes them) from the network that scores them,
        with the graph to the images; only called where ``has_features``."""
        raise NotImplementedError(f"{type(self).__name__} exposes no features")

    @abstractmethod
    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        """Scores, higher is better.

        Args:
            images: ``[B, 3, H, W]`` float32 in [0, 1].
            prompts: B texts.

        Returns:
            ``[B]`` float32; row b depends on image b and prompt b alone, whatever the batch.
        """
