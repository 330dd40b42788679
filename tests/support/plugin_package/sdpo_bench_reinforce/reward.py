"""How red a picture is."""

from collections.abc import Sequence

from torch import Tensor

from sdpo_bench.api import Reward


class Redness(Reward):
    """Mean of red minus the mean of green and blue (example of a third party)."""

    version = "1"
    scale = "share of full brightness, -1 to 1"
    source = "this file"
    native_model = "emoji-turbo"
    differentiable = True
    has_features = True

    def features(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        means = self.features(images)
        return means[:, 0] - (means[:, 1] + means[:, 2]) / 2
