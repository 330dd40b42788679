"""Random search in noise space: hill climbing by random neighbours, at the price of best of n.

The random search of Matyas (1965) over a sample's noise; Ma et al. 2025, arXiv 2501.09732, call it zero-order search.
A neighbour keeps the noise standard normal, so every candidate is a sample of the model.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Lt

from sdpo_bench.api import Search

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RandomSearchSettings:
    """Settings of random search."""

    n: Annotated[int, Ge(2)] = 8
    """Samples for each image that is delivered; each costs a whole sampling run and a reward call."""
    radius: Annotated[float, Gt(0), Lt(1)] = 0.5
    """rho: amplitude of the fresh noise in a neighbour, whose share of the variance is rho^2 (a quarter at 0.5); 0: the
    same sample, 1: a new one (best of n)."""


class RandomSearch(Search):
    """Trains nothing: climbs the reward by random neighbours of the best noise so far (inference-time reference)."""

    formula = "none; noise z = sqrt(1 - rho^2) z_best + rho eps, rho = radius"
    source = "Matyas 1965; arXiv 2501.09732 (zero-order search)"
    Settings = RandomSearchSettings
    settings: RandomSearchSettings

    @property
    def candidates(self) -> int:
        return self.settings.n

    def propose(self, best: "Tensor", fresh: "Tensor") -> "Tensor":
        """z_j = sqrt(1 - rho^2) z_best + rho eps, eps ~ N(0, I)."""
        rho = self.settings.radius
        return (1 - rho**2) ** 0.5 * best + rho * fresh
