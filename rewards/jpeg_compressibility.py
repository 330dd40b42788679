"""JPEG compressibility (DDPO, arXiv 2305.13301): small files score high."""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

from sdpo_bench.api import Reward

if TYPE_CHECKING:
    from torch import Tensor


def jpeg_kilobytes(images: "Tensor") -> "Tensor":
    """Size of each picture as a JPEG file.

    Quality 95 with every other encoder setting at Pillow's default, as in the official DDPO code; floats
    become bytes by rounding 255 x.

    Args:
        images: ``[B, 3, H, W]`` float in [0, 1].

    Returns:
        ``[B]`` float32 in kB of 1000 bytes.
    """
    import torch

    pixels = (images.detach().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return torch.tensor([_jpeg_bytes(picture) / 1000 for picture in pixels], dtype=torch.float32)


def _jpeg_bytes(picture) -> int:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=95)
    return buffer.tell()


class JpegCompressibility(Reward):
    """Minus the JPEG file size at quality 95, in kB."""

    name = "jpeg-compressibility"
    version = "1"
    scale = "minus kB (1000 bytes)"
    source = "DDPO, arXiv 2305.13301, section 4.1; kvablack/ddpo-pytorch"
    native_model = "emoji-turbo"

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        return -jpeg_kilobytes(images)
