"""Image features of the rewards that are a CLIP model: what a method's loss or a measure of variety compares."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sdpo_bench.rewards._clip import Clip
from sdpo_bench.rewards._images import SIDE, clip_pixels, normalise, to_bytes
from sdpo_bench.rewards._model_reward import ModelReward, plain_arithmetic


class ClipFeatures(ModelReward):
    """A reward whose model has CLIP's image side."""

    has_features = True

    @property
    def clip(self) -> Clip:
        """The loaded image side."""
        clip: Clip = self.model
        return clip

    def features(self, images: Tensor) -> Tensor:
        """Projected image features ``[B, D]`` float32, not normalised, of float images ``[B, 3, H, W]`` in [0, 1].

        Images without a graph are scored as ever, from 8 bits. Rounding to bytes has no gradient, so images with one
        are resized by torch instead, which moves features by about as much as the rounding.
        """
        followed = images.requires_grad and torch.is_grad_enabled()
        with plain_arithmetic(self.device), torch.set_grad_enabled(followed):
            parts = [self.clip.image_features(self._input(part)) for part in images.split(self.settings.batch_size)]
        return torch.cat(parts)

    def _input(self, images: Tensor) -> Tensor:
        """Model input ``[b, 3, 224, 224]`` of float images, with the graph to them where one is recorded."""
        return smooth_clip_pixels(images) if torch.is_grad_enabled() else clip_pixels(to_bytes(images))


def smooth_clip_pixels(images: Tensor) -> Tensor:
    """:func:`clip_pixels` of float images in [0, 1] without rounding, with the graph to them."""
    height, width = images.shape[-2:]
    short = min(height, width)
    size = tuple(SIDE if side == short else int(SIDE * side / short) for side in (height, width))
    resized = F.interpolate(images.float(), size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 1)
    top, left = ((side - SIDE) // 2 for side in size)
    return normalise(resized[..., top : top + SIDE, left : left + SIDE])
