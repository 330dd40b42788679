"""Best of n: the inference-time reference of every reward. Nothing is trained; the reward picks one of n samples.

Known from summarisation with human feedback (Stiennon et al. 2020, arXiv 2009.01325); for diffusion models it is the
random search of Ma et al. 2025, arXiv 2501.09732, section 3. As the picture is chosen by the very reward that scores
it, only held-out rewards say whether it is any better.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from sdpo_bench.api import Search

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class BestOfNSettings:
    """Settings of best of n."""

    n: Annotated[int, Ge(2)] = 8
    """Samples for each image that is delivered; each costs a whole sampling run and a reward call."""


class BestOfN(Search):
    """Trains nothing: the best of n samples by the reward, paid for at every image (inference-time reference)."""

    formula = "none; the best by the reward of n samples with noise z ~ N(0, I)"
    source = "arXiv 2501.09732, section 3 (random search); arXiv 2009.01325"
    Settings = BestOfNSettings
    settings: BestOfNSettings

    @property
    def candidates(self) -> int:
        return self.settings.n

    def propose(self, best: "Tensor", fresh: "Tensor") -> "Tensor":
        """z_j ~ N(0, I), whatever was found before."""
        return fresh
