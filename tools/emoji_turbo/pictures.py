"""Training pictures: glyphs, slightly moved and tinted, on a coloured background.

A pool of pictures is drawn once from a fixed seed and kept as bytes; training then only indexes it, which
on a small CPU costs nothing beside the networks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sdpo_bench.prompts.emoji_grammar import ANIMALS, BACKGROUND_COLORS, BACKGROUNDS, CLASSES, HELD_OUT, STYLES

SIDE = 32
"""Side of a model picture in pixels."""


@dataclass(frozen=True)
class Augmentation:
    """How far a glyph may be moved and tinted."""

    rotation: float = 0.06
    """Largest rotation in radians."""
    scale: tuple[float, float] = (0.93, 1.03)
    """Range of the glyph's size."""
    shift: float = 0.04
    """Largest shift as a fraction of half the picture's side."""
    tint: float = 0.04
    """Largest off-diagonal entry of the colour matrix."""
    brightness: float = 0.06
    """Largest relative change of brightness."""
    background: float = 0.025
    """Largest change of each background channel, in [0, 1] units."""


@dataclass(frozen=True)
class Pool:
    """Pictures with labels; index ``i`` of every tensor belongs to the same picture."""

    images: Tensor
    """uint8 ``[N, 3, 32, 32]``."""
    classes: Tensor
    """int64 ``[N]`` index into ``CLASSES``."""
    backgrounds: Tensor
    """int64 ``[N]`` index into ``BACKGROUNDS``."""
    styles: Tensor
    """int64 ``[N]`` index into ``STYLES``."""

    def __len__(self) -> int:
        return len(self.images)

    def pictures(self, index: Tensor) -> Tensor:
        """float32 ``[n, 3, 32, 32]`` in [-1, 1]."""
        return self.images[index].float() / 127.5 - 1

    def save(self, path) -> None:
        """Write the pool; ``load`` reads it."""
        torch.save(self.__dict__, path)

    @classmethod
    def load(cls, path) -> "Pool":
        """Read what ``save`` wrote."""
        return cls(**torch.load(path, weights_only=True))


def allowed_backgrounds() -> Tensor:
    """Sampling weight ``[65, 10]`` of each background for each class in the model's own training.

    White weighs three times as much as another colour; the held-out combinations weigh nothing.
    """
    weights = torch.ones(len(CLASSES), len(BACKGROUNDS))
    weights[:, BACKGROUNDS.index("white")] = 3
    for animal, background in HELD_OUT:
        weights[CLASSES.index(animal), BACKGROUNDS.index(background)] = 0
    return weights


def class_weights() -> Tensor:
    """Sampling weight ``[65]`` of each class: the animals count twice, as they are what the RL trains on."""
    return torch.tensor([1.0] * len(ANIMALS) + [0.5] * (len(CLASSES) - len(ANIMALS)))


def make_pool(
    glyphs: np.ndarray, labels: np.ndarray, count: int, seed: int, *, held_out: bool, augment: Augmentation
) -> Pool:
    """Draw ``count`` pictures.

    Args:
        glyphs: ``[N, 96, 96, 4]`` uint8 RGBA.
        labels: ``[N, 3]`` class, style, code point.
        seed: seed of every draw.
        held_out: whether the held-out combinations may occur (for scorers, never for the model).
        augment: ranges of the augmentation.
    """
    rgba = torch.from_numpy(glyphs).permute(0, 3, 1, 2).float() / 255
    rgba[:, :3] *= rgba[:, 3:]
    names = torch.tensor([CLASSES.index(name) for name in labels[:, 0]])
    styles = torch.tensor([STYLES.index(style) for style in labels[:, 1]])
    weight = class_weights()[names] / torch.bincount(names, minlength=len(CLASSES))[names]
    generator = torch.Generator().manual_seed(seed)
    index = torch.multinomial(weight, count, replacement=True, generator=generator)
    choice = torch.ones(len(CLASSES), len(BACKGROUNDS)) if held_out else allowed_backgrounds()
    ground = torch.multinomial(choice[names[index]], 1, generator=generator)[:, 0]
    parts = [
        _draw(rgba[part], ground_part, augment, generator)
        for part, ground_part in zip(index.split(512), ground.split(512))
    ]
    return Pool(torch.cat(parts), names[index], ground, styles[index])


def _draw(rgba: Tensor, ground: Tensor, augment: Augmentation, generator: torch.Generator) -> Tensor:
    """uint8 ``[n, 3, 32, 32]`` from premultiplied glyphs ``[n, 4, 96, 96]`` and background indices."""
    moved = _tint(_move(rgba, augment, generator), augment, generator)
    color = torch.tensor([BACKGROUND_COLORS[name] for name in BACKGROUNDS]).float()[ground] / 255
    color = (color + _uniform((len(rgba), 3), augment.background, generator)).clamp(0, 1)
    picture = moved[:, :3] + (1 - moved[:, 3:]) * color[:, :, None, None]
    return (picture * 255).round().clamp(0, 255).byte()


def _uniform(shape: tuple[int, ...], largest: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(shape, generator=generator) * 2 - 1) * largest


def _move(rgba: Tensor, augment: Augmentation, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift at twice the resolution, then average down.

    Never mirrored: which way an animal looks would double the modes of every prompt for nothing.
    """
    n = len(rgba)
    angle = _uniform((n,), augment.rotation, generator)
    low, high = augment.scale
    scale = low + (high - low) * torch.rand(n, generator=generator)
    shift = _uniform((2, n), augment.shift, generator)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    rows = [torch.stack([cos, -sin, shift[0]], 1), torch.stack([sin, cos, shift[1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [n, 4, 2 * SIDE, 2 * SIDE], align_corners=False)
    return F.avg_pool2d(F.grid_sample(rgba, grid, align_corners=False), 2)


def _tint(rgba: Tensor, augment: Augmentation, generator: torch.Generator) -> Tensor:
    """Mix the colour channels a little; premultiplied colours stay at most alpha."""
    n = len(rgba)
    matrix = torch.eye(3) + _uniform((n, 3, 3), augment.tint, generator)
    matrix = matrix / matrix.sum(2, keepdim=True) * (1 + _uniform((n, 1, 1), augment.brightness, generator))
    color, alpha = rgba[:, :3], rgba[:, 3:]
    mixed = torch.einsum("nij,njhw->nihw", matrix, color).clamp(min=0)
    return torch.cat([torch.minimum(mixed, alpha), alpha], 1)
