"""What methods share that compare noised samples within the groups of their prompts (NFT, AWM, DGPO)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from sdpo_bench.api import Method, Noised

if TYPE_CHECKING:
    from torch import Tensor


RAMP = 0.001
"""What an old policy keeps of itself grows by this with each optimiser step (all official codes)."""


def kept_share(updates: int, most: float) -> float:
    """Share of itself that a slow old policy keeps after ``updates`` optimiser steps: min(0.001 n, ``most``)."""
    return min(RAMP * updates, most)


def velocity_error(seen: Noised, original: "Tensor") -> "Tensor":
    """``[b, G]`` mean squared error of the velocity: that of the predicted original over the squared noise level."""
    return ((original - seen.clean) / seen.level).square().flatten(2).mean(-1)


@dataclass(frozen=True)
class GroupSettings:
    """Size of a group."""

    group_size: Annotated[int, Ge(2)] = 8
    """G: images of one prompt that are compared with each other (papers of NFT, AWM and DGPO: 24)."""


class NoisedGroups(Method):
    """A method that learns from noised samples, with advantages relative to the other images of the same prompt."""

    Settings = GroupSettings
    settings: GroupSettings
    granularity = "noised"
    defaults = {"update.order": "accumulated", "advantage.gamma": 1.0, "advantage.normalisation": "group"}

    @property
    def members(self) -> int:
        return self.settings.group_size
