"""Plain policy gradient with an entropy-free baseline: the smallest method that learns."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sdpo_bench.api import Loss, Method, Minibatch


@dataclass(frozen=True)
class ReinforceSettings:
    """Its own settings."""

    scale: Annotated[float, Gt(0)] = 1.0
    """Factor of the loss."""


class Reinforce(Method):
    """Policy gradient of the final image's reward (example of a third party)."""

    Settings = ReinforceSettings
    settings: ReinforceSettings
    defaults = {"update.order": "accumulated", "advantage.gamma": 1.0}

    def loss(self, batch: Minibatch) -> Loss:
        """mean -A ratio, whose gradient at ratio 1 is REINFORCE's."""
        assert batch.advantages is not None
        ratio = (batch.log_probs - batch.old_log_probs).exp()
        return Loss(-self.settings.scale * (batch.advantages * ratio).mean())
