"""Picture quality without a reference (PIQE, doi 10.1109/NCC.2015.7084843): blur, blockiness and noise in blocks."""

import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from sdpo_bench.api import Reward
from sdpo_bench.errors import MissingError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PACKAGES = ("pypiqe", "cv2")
INSTALL = "needs the package pypiqe; type: pip install 'sdpo-bench[piqe]'"


class Piqe(Reward):
    """Minus PIQE, the share of distortion in 16x16 blocks with detail: 0 is best, -100 worst; the prompt is ignored."""

    name = "piqe"
    version = "1"
    scale = "minus PIQE points, -100 to 0"
    source = "PIQE, doi 10.1109/NCC.2015.7084843, as in the package pypiqe"
    native_model = "sd-turbo"

    @classmethod
    def unavailable(cls) -> str | None:
        return None if all(map(importlib.util.find_spec, PACKAGES)) else INSTALL

    @property
    def full_version(self) -> str:
        """``version`` and pypiqe's, whose code computes the score.

        Raises:
            MissingError: the package is not installed.
        """
        self.load()
        return f"{self.version}+pypiqe-{version('pypiqe')}"

    def load(self) -> "Piqe":
        if self.unavailable():
            raise MissingError(f"the reward 'piqe' {INSTALL}")
        return self

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        """Scores ``[B]`` in [-100, 0]; -100 for a picture without detail."""
        import torch

        self.load()
        pixels = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
        pictures = pixels.flip(1).permute(0, 2, 3, 1).contiguous().cpu().numpy()  # blue, green, red: OpenCV's order
        return torch.tensor([-distortion(picture) for picture in pictures], dtype=torch.float32)


def distortion(picture: "np.ndarray") -> float:
    """PIQE of a ``[H, W, 3]`` uint8 picture whose channels are blue, green, red: 0 to 100, lower is better."""
    import numpy as np
    from pypiqe import piqe

    with np.errstate(invalid="ignore"):  # the package divides by the largest value, which is 0 in a black picture
        return float(piqe(picture)[0])
