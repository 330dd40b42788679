"""A second set of the adapter's weights that follows the one that learns: the policy that samples, or an average."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
"""Adapter weights by parameter name, float32 on the policy's device."""


@dataclass(frozen=True)
class TrailingWeights:
    """Weights that keep a share of what they were at each step of the others."""

    weights: dict[str, Tensor]

    @classmethod
    def of(cls, parameters: Weights) -> "TrailingWeights":
        """A copy of the weights as they are."""
        return cls({name: value.detach().clone() for name, value in parameters.items()})

    @torch.no_grad()
    def follow(self, parameters: Weights, keep: float) -> None:
        """``own <- keep own + (1 - keep) parameters``."""
        for name, value in parameters.items():
            self.weights[name].lerp_(value.detach(), 1 - keep)


def average_keep(decay: float, updates: int, *, warmup: bool) -> float:
    """Share that an exponential moving average keeps at update number ``updates`` (from 1).

    With ``warmup`` it is at most (1 + n) / (10 + n), so that the first weights do not weigh for ever (the rule of
    TensorFlow's and diffusers' averages).
    """
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay
