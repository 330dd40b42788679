"""How warm the colours of a picture are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdpo_bench.api import Reward

if TYPE_CHECKING:
    from torch import Tensor


class Warmth(Reward):
    """Mean of the red channel minus mean of the blue one."""

    version = "1"
    scale = "difference of mean intensities, -1 to 1"
    source = "sdpo-bench, examples/plugin-package"
    native_model = "emoji-turbo"
    differentiable = True

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))
