"""Text-image alignment of emoji pictures: does the picture show what the prompt names?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdpo_bench.api import Reward

if TYPE_CHECKING:
    from torch import Tensor


class EmojiAlign(Reward):
    """Log-probability that the picture shows what the prompt names, at a temperature that does not saturate."""

    name = "emoji-align"
    version = "1"
    scale = "nats at 3 times the calibrated temperature; real pictures -0.9 (-1.6 with a background), noise -4.7 (-7.1)"
    source = "network `align` of sdpo_bench/assets/emoji_scorers, trained by tools/emoji_turbo"
    native_model = "emoji-turbo"
    differentiable = True
    has_features = True

    def features(self, images: "Tensor") -> "Tensor":
        from sdpo_bench.scoring.emoji_scorer import load_scorer

        return load_scorer("align", self.device).features(images.to(self.device))

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        from sdpo_bench.scoring.emoji_scorer import alignment, load_scorer

        return alignment(load_scorer("align", self.device), images.to(self.device), prompts).cpu()
