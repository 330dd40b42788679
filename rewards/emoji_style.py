"""Style preference among emoji pictures: how much does the picture look like one of the drawing styles?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdpo_bench.api import Reward
from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.prompts.emoji_grammar import STYLES

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class EmojiStyleSettings:
    """Settings of `emoji-style`."""

    style: str = "fluent 3d"
    """Preferred drawing style: noto, twemoji, fluent flat or fluent 3d (the shaded one)."""


class EmojiStyle(Reward):
    """Bounded log-probability that a picture is recognisable and in a preferred style."""

    Settings = EmojiStyleSettings
    name = "emoji-style"
    version = "1"
    scale = "nats, bounded to [-4, 0]"
    source = "network `align` of sdpo_bench/assets/emoji_scorers, trained by tools/emoji_turbo"
    native_model = "emoji-turbo"
    differentiable = True
    has_features = True

    def __init__(self, settings: EmojiStyleSettings, device: str = "cpu"):
        super().__init__(settings, device)
        if settings.style not in STYLES:
            raise UsageError(f"unknown style '{settings.style}'.{nearest(settings.style, STYLES)}")

    @property
    def full_version(self) -> str:
        """The style is part of the version: scores of different styles are different rewards."""
        return f"{self.version}:{self.settings.style.replace(' ', '-')}"

    def features(self, images: "Tensor") -> "Tensor":
        from sdpo_bench.scoring.emoji_scorer import load_scorer

        return load_scorer("align", self.device).features(images.to(self.device))

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        from sdpo_bench.scoring.emoji_scorer import load_scorer, style_score

        scorer = load_scorer("align", self.device)
        return style_score(scorer, images.to(self.device), self.settings.style).cpu()
