"""Another reward with a known defect: thresholded, noisy or on another scale, to see which method keeps working."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge

from sdpo_bench.api import Reward
from sdpo_bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class AlteredSettings:
    """Settings of `altered`; applied in this order: noise, threshold, scale, offset."""

    of: str = "emoji-align"
    """The reward that is altered, with its own defaults."""
    noise: Annotated[float, Ge(0)] = 0.0
    """Standard deviation of normal noise added to the score, in its units. The noise of an image and prompt is fixed:
    it is drawn from their content, so that asking twice gives the same answer."""
    threshold: float | None = None
    """1 where the score is at least this, else 0."""
    scale: float = 1.0
    """Factor; not 0."""
    offset: float = 0.0
    """Added in the end."""


class Altered(Reward):
    """Another reward, thresholded, with noise or on another scale (for studies of robustness)."""

    Settings = AlteredSettings
    name = "altered"
    version = "1"
    scale = "that of the altered reward, unless thresholded or rescaled"
    source = "the altered reward's own"
    native_model = "emoji-turbo"

    def __init__(self, settings: AlteredSettings, device: str = "cpu"):
        from sdpo_bench.scoring.reward_expression import choose

        super().__init__(settings, device)
        choice = choose(settings.of)
        if choice.weighted or choice.name == self.name:
            raise UsageError(f"reward.of: '{settings.of}' cannot be altered; it must be a single reward.")
        if settings.scale == 0 or not math.isfinite(settings.scale):
            raise UsageError("reward.scale = 0 leaves nothing to learn from; use another factor.")
        self.inner = choice.make({}, device)

    @property
    def full_version(self) -> str:
        """Names the altered reward, its version and every alteration."""
        plain = AlteredSettings()
        changed = [
            f"{f.name}={_exact(getattr(self.settings, f.name))}"
            for f in fields(plain)
            if f.name != "of" and getattr(self.settings, f.name) != getattr(plain, f.name)
        ]
        of = (self.inner.filed_as or self.settings.of) + "/" + self.inner.full_version
        return ":".join([self.version, of, *changed])

    @property
    def commits(self) -> Mapping[str, str]:  # type: ignore[override]
        return self.inner.commits

    def load(self) -> Any:
        self.inner.load()
        return self

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        s, scores = self.settings, self.inner(images, prompts).float()
        if s.noise:
            scores = scores + s.noise * content_noise(images, prompts).to(scores)
        if s.threshold is not None:
            scores = (scores >= s.threshold).float()
        return s.scale * scores + s.offset


def content_noise(images: "Tensor", prompts: Sequence[str]) -> "Tensor":
    """Standard normal ``[B]``, a function of each image's bytes and its prompt alone."""
    import torch

    from sdpo_bench.seeds import normal

    rows = images.detach().float().cpu().contiguous()
    names = [blake2b(row.numpy().tobytes(), digest_size=16).hexdigest() for row in rows]
    return torch.stack([normal((), "altered", name, prompt) for name, prompt in zip(names, prompts, strict=True)])


def _exact(value: float) -> str:
    """The shortest text that tells it from every other number; short ones read as in the versions of earlier runs."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
