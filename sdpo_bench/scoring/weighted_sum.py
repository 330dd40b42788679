"""A weighted sum of rewards whose parts are first put on one scale.

Rewards have scales of their own (a cosine near 0.25 beside a rating near 5.5), so weights mean nothing before the
parts are standardised: ``sum of weight x (score - mean) / std``. Mean and standard deviation are those of the *base
model's* pictures, measured once before training (``reward_scale``) and then fixed. Statistics that follow the policy
would move the goal while it is learnt; constants from a paper would belong to somebody else's prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le

from sdpo_bench.api import Reward
from sdpo_bench.errors import UsageError
from sdpo_bench.hashing import digest
from sdpo_bench.models.base_model import model_digest
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.reward_formula import sum_name
from sdpo_bench.settings import ModelSettings, ScheduleSettings, schedule_data

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Basis:
    """Which pictures parts are standardised over: those of the base model in the run's own training setting.

    Nothing of the method or the training seed is in it, so all runs of a comparison share one scale.
    """

    model: ModelSettings
    schedule: ScheduleSettings
    prompts: str
    """Prompt set of training."""

    @property
    def id(self) -> str:
        """Hash of all that can change the pictures."""
        model = {key: getattr(self.model, key) for key in ("name", "revision", "precision", "guidance_scale")}
        # Where they are the model's own, nothing is said: ids of earlier references stay.
        optional = {"resolution": self.model.resolution, "text_tokens": self.model.text_tokens}
        model |= {key: value for key, value in optional.items() if value is not None}
        if content := model_digest(self.model.name):
            model["digest"] = content
        data = {"model": model, "schedule": schedule_data(self.schedule), "prompts": load_prompts(self.prompts)}
        if self.schedule.sampler == "lcm":
            data["sampler"] = "own"  # earlier versions drew these pictures by DDIM
        return digest(data, 8)


@dataclass(frozen=True)
class CompositeSettings:
    """Settings of a weighted sum, beside those of its parts."""

    standardise: Literal["base", "none"] = "base"
    """Parts as z-scores over pictures of the base model, or as they are."""
    reference_images: Annotated[int, Ge(2), Le(100_000)] = 128
    """Pictures of the base model that means and standard deviations are measured on."""


class Composite(Reward):
    """Weighted sum of standardised rewards.

    Args:
        parts: name, weight and reward of each.
        basis: needed where parts are standardised.
    """

    Settings = CompositeSettings
    version = "1"
    native_model = "sd-turbo"

    def __init__(
        self, settings: Any, device: str, parts: Sequence[tuple[str, float, Reward]], basis: Basis | None = None
    ):
        super().__init__(settings, device)
        names = [name for name, _, _ in parts]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"the reward '{twice}' is in the sum twice (once through a service). Give it once.")
        parts = sorted(parts, key=lambda part: part[0])
        self.parts: dict[str, Reward] = {name: reward for name, _, reward in parts}
        self.weights: dict[str, float] = {name: weight for name, weight, _ in parts}
        self.basis = basis
        self.statistics: Mapping[str, tuple[float, float]] | None = None
        """Mean and standard deviation of each part over the base model's pictures; set by ``reward_scale``."""

    def load(self) -> "Composite":
        """Load every part."""
        for part in self.parts.values():
            part.load()
            self.commits = {**self.commits, **part.commits}
        return self

    @property
    def standardised(self) -> bool:
        return bool(self.settings.standardise == "base")

    @property
    def differentiable(self) -> bool:  # type: ignore[override]
        """Whether every part is: a sum of which only some parts pull would follow another goal than its score."""
        return all(part.differentiable for part in self.parts.values())

    @property
    def filed_as(self) -> str:
        return sum_name(list(self.weights.items()))

    @property
    def identity_settings(self) -> dict[str, Any]:
        settings = dict(super().identity_settings)
        if not self.standardised:
            settings.pop("reference_images")
        for name, part in self.parts.items():
            settings |= {f"{name}.{key}": value for key, value in part.identity_settings.items()}
        return settings

    @property
    def reference_id(self) -> str:
        """Hash of what the statistics depend on: the parts' versions and the pictures, not the weights.

        Raises:
            UsageError: no base model to standardise over.
        """
        if self.basis is None:
            raise UsageError(
                f"'{self.filed_as}' is standardised over a run's base model and has no numbers without a run. "
                "Use its parts one by one, or --set reward.standardise=none."
            )
        versions = {name: part.full_version for name, part in self.parts.items()}
        return digest({"parts": versions, "basis": self.basis.id, "images": self.settings.reference_images}, 10)

    @property
    def full_version(self) -> str:
        """``1:`` parts with versions and weights, and what they are standardised over, e.g. ``... z-1a2b3c4d5e``."""
        parts = "+".join(f"{n}/{part.full_version}*{self.weights[n]:.12g}" for n, part in self.parts.items())
        return f"{self.version}:{parts}:" + (f"z-{self.reference_id}" if self.standardised else "raw")

    @property
    def scale(self) -> str:  # type: ignore[override]
        unit = "standard deviations of each part over the base model's pictures" if self.standardised else "as scored"
        return f"weighted sum, {unit}"

    @property
    def source(self) -> str:  # type: ignore[override]
        return "; ".join(f"{name}: {part.source}" for name, part in self.parts.items())

    def combine(self, scores: "Mapping[str, Tensor]") -> "Tensor":
        """Float32 ``[B]`` of the parts' scores ``[B]``; summed in float64, by name."""
        import torch

        if self.standardised and self.statistics is None:
            raise RuntimeError("the parts have not been measured on the base model yet")
        total = torch.zeros(len(next(iter(scores.values()))), dtype=torch.float64)
        for name, weight in self.weights.items():
            mean, std = (self.statistics or {}).get(name, (0.0, 1.0))
            total += weight * (scores[name].double().cpu() - mean) / std
        return total.float()

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        return self.combine({name: part(images, prompts) for name, part in self.parts.items()})
