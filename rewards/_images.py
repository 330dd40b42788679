"""Pictures on their way into reward models: one conversion to bytes, then each model's own preprocessing.

The official code of every reward here starts from 8-bit pictures. Float images become bytes once, by
round(255 x), as in the SDPO scorers. Resizing then repeats the library and the rounding rule of each model's
publication, because a single column of crop can move a score by more than training does.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sdpo_bench.errors import MissingError

SIDE = 224
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def to_bytes(images: Tensor) -> Tensor:
    """uint8 ``[B, 3, H, W]`` of float images in [0, 1], rounding 255 x (half to even) and clamping."""
    return (images.detach().float() * 255).round().clamp(0, 255).to(torch.uint8)


def to_pil(pictures: Tensor) -> list[Image.Image]:
    """RGB pictures of uint8 ``[B, 3, H, W]``."""
    return [Image.fromarray(p) for p in pictures.permute(0, 2, 3, 1).contiguous().cpu().numpy()]


def from_pil(picture: Image.Image) -> Tensor:
    """Float32 ``[1, 3, H, W]`` in [0, 1] of a picture of any mode; grey becomes colour, alpha is dropped."""
    rgb = picture.convert("RGB")
    data = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return data.view(1, rgb.height, rgb.width, 3).permute(0, 3, 1, 2).float() / 255


def read_image(path: str | Path) -> Tensor:
    """Float32 ``[1, 3, H, W]`` in [0, 1] of a picture file.

    Raises:
        MissingError: no such file, or not a picture.
    """
    try:
        with Image.open(path) as picture:
            return from_pil(picture)
    except OSError as error:
        raise MissingError(f"'{path}' cannot be read as a picture: {error}") from error


def normalise(pixels: Tensor) -> Tensor:
    """CLIP's channel normalisation of float ``[..., 3, h, w]`` in [0, 1]."""
    mean = torch.tensor(MEAN, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(STD, device=pixels.device).view(3, 1, 1)
    return (pixels - mean) / std


def clip_pixels(pictures: Tensor) -> Tensor:
    """Model input ``[B, 3, 224, 224]`` (CPU) of uint8 ``[B, 3, H, W]`` by the CLIP processor.

    Pillow bicubic to a short side of 224, centre crop, normalisation. The Pillow class is named explicitly:
    what ``CLIPImageProcessor`` does depends on whether torchvision is installed.
    """
    return _clip_processor()(images=to_pil(pictures), return_tensors="pt")["pixel_values"].float()


@lru_cache(maxsize=1)
def _clip_processor() -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil()


def padded_pixels(pictures: Tensor, *, antialias: bool = True) -> Tensor:
    """Model input ``[B, 3, 224, 224]`` of uint8 ``[B, 3, H, W]`` by HPSv2's transform, on the same device.

    The float tensor is resized bicubically so that its longest side is 224, without clamping, and padded with
    black to a square, the odd pixel right and below. Pictures whose longest side is 224 are padded too; the
    official code leaves them alone, and its model then fails.

    Args:
        antialias: ``False`` repeats torchvision 0.16 and older, which did not smooth tensors when shrinking.
    """
    pixels = pictures.float() / 255
    height, width = pixels.shape[-2:]
    if max(height, width) != SIDE:
        scale = SIDE / max(height, width)
        height, width = (max(1, round(side * scale)) for side in (height, width))
        size = (height, width)
        pixels = F.interpolate(pixels, size, mode="bicubic", align_corners=False, antialias=antialias)
    right, below = SIDE - width, SIDE - height
    pixels = F.pad(pixels, (right // 2, right - right // 2, below // 2, below - below // 2))
    return normalise(pixels)


def cropped_pixels(pictures: Tensor) -> Tensor:
    """Model input ``[B, 3, 224, 224]`` (CPU) of uint8 ``[B, 3, H, W]`` by ImageReward's transform."""
    return normalise(cropped_bytes(pictures).float() / 255)


def cropped_bytes(pictures: Tensor) -> Tensor:
    """uint8 ``[B, 3, 224, 224]``: Pillow bicubic to a short side of 224, then torchvision's centre crop."""
    cropped = [_resize_and_crop(picture).tobytes() for picture in to_pil(pictures)]
    data = torch.frombuffer(bytearray(b"".join(cropped)), dtype=torch.uint8)
    return data.view(len(cropped), SIDE, SIDE, 3).permute(0, 3, 1, 2)


def _resize_and_crop(picture: Image.Image) -> Image.Image:
    short = min(picture.size)
    width, height = (SIDE if side == short else int(SIDE * side / short) for side in picture.size)
    # torchvision rounds a margin of .5 to the even pixel, where transformers' CLIP processor floors it
    left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + SIDE, top + SIDE))
