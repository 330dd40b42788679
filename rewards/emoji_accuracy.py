"""Held-out check of the emoji rewards: does a second, independent network recognise the prompt's class?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdpo_bench.api import Reward

if TYPE_CHECKING:
    from torch import Tensor


class EmojiAccuracy(Reward):
    """Top-1 class correctness (0 or 1) by a second network that no other reward uses."""

    name = "emoji-accuracy"
    version = "1"
    scale = "1 if the prompt's class is the most probable one, else 0"
    source = "network `accuracy` of sdpo_bench/assets/emoji_scorers, trained by tools/emoji_turbo"
    native_model = "emoji-turbo"
    has_features = True

    def features(self, images: "Tensor") -> "Tensor":
        from sdpo_bench.scoring.emoji_scorer import load_scorer

        return load_scorer("accuracy", self.device).features(images.to(self.device))

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        from sdpo_bench.scoring.emoji_scorer import correctness, load_scorer

        return correctness(load_scorer("accuracy", self.device), images.to(self.device), prompts).cpu()
