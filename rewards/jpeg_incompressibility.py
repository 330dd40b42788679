"""JPEG incompressibility (DDPO, arXiv 2305.13301): large files score high."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sdpo_bench.api import Reward
from sdpo_bench.rewards.jpeg_compressibility import jpeg_kilobytes

if TYPE_CHECKING:
    from torch import Tensor


class JpegIncompressibility(Reward):
    """The JPEG file size at quality 95, in kB."""

    name = "jpeg-incompressibility"
    version = "1"
    scale = "kB (1000 bytes)"
    source = "DDPO, arXiv 2305.13301, section 4.1; kvablack/ddpo-pytorch"
    native_model = "emoji-turbo"

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        return jpeg_kilobytes(images)
