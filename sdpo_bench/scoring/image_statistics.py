"""What the pictures look like, in numbers and in grids: a rising reward over collapsing pictures must not go unseen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo_bench.scoring.grid_layout import CELL, GAP, HEAD, LABEL_WIDTH

STATISTICS = ("brightness", "contrast", "saturation", "sharpness")
FLAT_CONTRAST = 0.02  # below this standard deviation a picture is one colour to the eye


def statistics(images: Tensor) -> dict[str, Tensor]:
    """Per-image statistics ``[B]`` of images ``[B, 3, H, W]`` in [0, 1].

    ``brightness``: mean; ``contrast``: standard deviation of luminance; ``saturation``: mean of max - min over
    channels; ``sharpness``: mean absolute difference of neighbouring luminance.
    """
    images = images.float()
    luminance = (images * torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)).sum(1)
    down, right = luminance.diff(dim=1).abs(), luminance.diff(dim=2).abs()
    return {
        "brightness": images.mean((1, 2, 3)),
        "contrast": luminance.flatten(1).std(1) if len(images) else luminance.new_zeros(0),  # torch warns of none
        "saturation": (images.amax(1) - images.amin(1)).mean((1, 2)),
        "sharpness": 0.5 * (down.mean((1, 2)) + right.mean((1, 2))),
    }


@dataclass(frozen=True)
class Sums:
    """What :func:`summary` needs to know of a set of images; those of parts add up to those of the whole."""

    count: int
    numbers: dict[str, float]
    flat: int
    pixels: Tensor
    square: float

    @classmethod
    def of(cls, images: Tensor) -> "Sums":
        """Sums over images ``[B, 3, H, W]`` in [0, 1]."""
        numbers = statistics(images)
        return cls(
            count=len(images),
            numbers={name: float(value.double().sum()) for name, value in numbers.items()},
            flat=int((numbers["contrast"] < FLAT_CONTRAST).sum()),
            pixels=images.sum(0, dtype=torch.float64).cpu(),
            square=sum(float(image.double().square().mean()) for image in images),
        )

    def __add__(self, other: "Sums") -> "Sums":
        if not self.count or not other.count:
            return self if self.count else other
        return Sums(
            count=self.count + other.count,
            numbers={name: value + other.numbers[name] for name, value in self.numbers.items()},
            flat=self.flat + other.flat,
            pixels=self.pixels + other.pixels,
            square=self.square + other.square,
        )


def summary(sums: Sums) -> dict[str, float]:
    """Means of :func:`statistics`, the share of flat pictures, and diversity.

    ``diversity``: root mean squared distance of pixels between two different images, over all pairs.
    """
    count = sums.count
    result = {name: value / count for name, value in sums.numbers.items()} | {"flat_fraction": sums.flat / count}
    if count > 1:
        variance = sums.square / count - float((sums.pixels / count).square().mean())
        result["diversity"] = math.sqrt(max(0.0, 2 * variance * count / (count - 1)))
    return result


def to_bytes_image(images: Tensor) -> Tensor:
    """8-bit images ``[B, H, W, 3]`` on the CPU: round(255 x)."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().contiguous()


def grid(rows: Sequence[tuple[str, Tensor]], columns: Sequence[str], path: Path) -> None:
    """Write a labelled PNG grid; small pictures are enlarged without smoothing.

    Args:
        rows: (label, images ``[len(columns), 3, H, W]`` in [0, 1]).
        columns: column headings.
    """
    from PIL import Image, ImageDraw

    width = LABEL_WIDTH + len(columns) * (CELL + GAP)
    canvas = Image.new("RGB", (width, HEAD + len(rows) * (CELL + GAP)), "white")
    draw: Any = ImageDraw.Draw(canvas)
    for c, text in enumerate(columns):
        draw.text((LABEL_WIDTH + c * (CELL + GAP) + 4, 5), text, fill="black")
    for r, (label, images) in enumerate(rows):
        top = HEAD + r * (CELL + GAP)
        draw.text((6, top + CELL // 2 - 6), label[:30], fill="black")
        for c, array in enumerate(to_bytes_image(images).numpy()):
            picture = Image.fromarray(array)
            method = Image.Resampling.NEAREST if picture.width < CELL else Image.Resampling.LANCZOS
            canvas.paste(picture.resize((CELL, CELL), method), (LABEL_WIDTH + c * (CELL + GAP), top))
    from io import BytesIO

    from sdpo_bench.system.files import atomic_write

    stream = BytesIO()
    canvas.save(stream, "PNG")
    atomic_write(path, stream.getvalue())
