"""What the pictures look like, in numbers and in grids: a rising reward over collapsing pictures must not go unseen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
        "contrast": luminance.flatten(1).std(1),
        "saturation": (images.amax(1) - images.amin(1)).mean((1, 2)),
        "sharpness": 0.5 * (down.mean((1, 2)) + right.mean((1, 2))),
    }


def summary(images: Tensor) -> dict[str, float]:
    """Means of :func:`statistics`, the share of flat pictures, and diversity.

    ``diversity``: root mean squared distance of pixels between neighbouring images of the batch.
    """
    numbers = statistics(images)
    result = {name: float(value.mean()) for name, value in numbers.items()}
    result["flat_fraction"] = float((numbers["contrast"] < FLAT_CONTRAST).float().mean())
    if len(images) > 1:
        result["diversity"] = float((images - images.roll(1, 0)).square().mean((1, 2, 3)).sqrt().mean())
    return result


def to_bytes_image(images: Tensor) -> Tensor:
    """8-bit images ``[B, H, W, 3]`` on the CPU: round(255 x)."""
    return (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().contiguous()


def grid(rows: Sequence[tuple[str, Tensor]], columns: Sequence[str], path: Path, *, cell: int = 96) -> None:
    """Write a labelled PNG grid.

    Args:
        rows: (label, images ``[len(columns), 3, H, W]`` in [0, 1]).
        columns: column headings.
        cell: side of one picture in pixels; small pictures are enlarged without smoothing.
    """
    from PIL import Image, ImageDraw

    label_width, head, gap = 190, 22, 4
    width = label_width + len(columns) * (cell + gap)
    canvas = Image.new("RGB", (width, head + len(rows) * (cell + gap)), "white")
    draw: Any = ImageDraw.Draw(canvas)
    for c, text in enumerate(columns):
        draw.text((label_width + c * (cell + gap) + 4, 5), text, fill="black")
    for r, (label, images) in enumerate(rows):
        top = head + r * (cell + gap)
        draw.text((6, top + cell // 2 - 6), label[:30], fill="black")
        for c, array in enumerate(to_bytes_image(images).numpy()):
            picture = Image.fromarray(array)
            method = Image.Resampling.NEAREST if picture.width < cell else Image.Resampling.LANCZOS
            canvas.paste(picture.resize((cell, cell), method), (label_width + c * (cell + gap), top))
    from io import BytesIO

    from sdpo_bench.store import atomic_write

    stream = BytesIO()
    canvas.save(stream, "PNG")
    atomic_write(path, stream.getvalue())
