"""How different the pictures of one prompt are from each other, by the features of a reward's own network.

It is measured in an evaluation like a held-out reward, so that its change has the interval and the test that scores
have. It compares pictures, which no reward of one picture does, so nothing can be trained on it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sdpo_bench.api import Reward
from sdpo_bench.errors import UsageError
from sdpo_bench.plugins.registry import declaring

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "variety:"
FEWEST = 2
"""Pictures of a prompt that can be compared; a version without a number means these."""


class Variety(Reward):
    """Mean cosine distance of a picture's features to those of the other pictures of its prompt.

    The mean over a prompt's pictures is the mean over their pairs, whatever their number. With two pictures a prompt
    the Vendi score (Friedman and Dieng, TMLR 2023) is a function of it.

    Args:
        reward: whose network gives the features.
        pictures: of each prompt that are compared. A picture's number depends on it, so it belongs to the version.

    Raises:
        UsageError: a reward that exposes none.
    """

    scale = "cosine distance of features: 0 alike, 1 unrelated, 2 opposite"
    source = "mean pairwise distance within a prompt"
    native_model = ""

    def __init__(self, name: str, reward: Reward, pictures: int = FEWEST):
        super().__init__(reward.settings, reward.device)
        if not reward.has_features:
            raise UsageError(
                f"'{PREFIX}{name}' compares features, and reward '{name}' exposes none. Rewards that do: "
                f"{', '.join(declaring('has_features')) or '(none)'}."
            )
        self.reward = reward
        self.pictures = pictures

    @property
    def version(self) -> str:  # type: ignore[override]
        own = "1" if self.pictures == FEWEST else f"1+pictures={self.pictures}"
        return f"{own}:{self.reward.full_version}"

    @property
    def full_version(self) -> str:
        """``version``, since the settings are the reward's and stand in its own."""
        return self.version

    def load(self) -> Any:
        self.reward = self.reward.load()
        return self

    def features(self, images: "Tensor") -> "Tensor":
        return self.reward.features(images)

    def __call__(self, images: "Tensor", prompts: Sequence[str]) -> "Tensor":
        raise TypeError("variety compares pictures; it has no score of one")


def distances(features: "Tensor", prompts: Sequence[str]) -> "Tensor":
    """Mean cosine distance to the other rows of the same prompt.

    Args:
        features: ``[n, D]`` float.
        prompts: n texts, each at least twice.

    Returns:
        ``[n]`` float32.
    """
    import torch

    unit = torch.nn.functional.normalize(features.double(), dim=1)
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    found = torch.empty(len(features), dtype=torch.float64)
    for members in rows.values():
        own = unit[members]
        cosines = own @ own.T
        others = cosines.sum(1) - cosines.diagonal()
        found[members] = 1 - others / (len(members) - 1)
    return found.float()
