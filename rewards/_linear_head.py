"""The one small network that two published rewards end in: five linear layers with nothing in between."""

from torch import Tensor, nn

HIDDEN = (1024, 128, 64, 16, 1)


class LinearHead(nn.Module):
    """Affine map ``[B, width]`` -> ``[B, 1]`` under the published layer numbers 0, 2, 4, 6, 7.

    The numbers in between were dropout, which does nothing in evaluation; there are no activations (heads of
    christophschuhmann/improved-aesthetic-predictor and THUDM/ImageReward).
    """

    def __init__(self, width: int):
        super().__init__()
        first, second, third, fourth, last = (nn.Linear(i, o) for i, o in zip((width, *HIDDEN), HIDDEN))
        gap = nn.Identity
        self.layers = nn.Sequential(first, gap(), second, gap(), third, gap(), fourth, last)

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``[B, 1]`` in the layers' dtype."""
        return self.layers(features.to(next(self.parameters()).dtype))
