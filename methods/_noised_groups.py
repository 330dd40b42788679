"""What methods share that compare noised samples within the groups of their prompts (NFT, AWM, DGPO)."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from sdpo_bench.api import Method


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
