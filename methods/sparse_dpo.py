"""Sparse-reward DPO: trajectory-level direct preference optimisation, the paper's sparse baseline.

Rafailov et al. 2023 (arXiv 2305.18290, eq. 7) with a denoising trajectory in the place of a text: its log-likelihood
ratio is the sum over steps. The engine differentiates it with one step's graph in memory at a time.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt

from sdpo_bench.api import Loss, Method, Minibatch


@dataclass(frozen=True)
class SparseDPOSettings:
    """Settings of sparse-reward DPO's own."""

    beta: Annotated[float, Gt(0)] = 0.1
    """Temperature of the preference model (as D3PO's official 0.1)."""


class SparseDPO(Method):
    """Trajectory-level DPO: the better final image's whole trajectory preferred (sparse-reward baseline)."""

    formula = "mean -ln sigmoid(beta y sum_i w_i [(lp_a - ref_a) - (lp_b - ref_b)])"
    source = "arXiv 2305.18290, eq. 7, with a denoising trajectory for a text"
    Settings = SparseDPOSettings
    settings: SparseDPOSettings
    members = 2
    shared_noise = True
    signal = "preference"
    needs_reference = True
    granularity = "trajectory"
    defaults = {"update.order": "accumulated", "update.lr": 3e-5}

    def loss(self, batch: Minibatch) -> Loss:
        """mean -ln sigmoid(beta label sum_i [(lp_a - ref_a) - (lp_b - ref_b)]); ties have label 0."""
        from torch.nn.functional import logsigmoid

        assert batch.ref_log_probs is not None
        total = (batch.log_probs - batch.ref_log_probs).sum(-1)
        label = (batch.final_rewards[:, 0] - batch.final_rewards[:, 1]).sign()
        margin = self.settings.beta * label * (total[:, 0] - total[:, 1])
        metrics = {"margin": margin.detach().mean(), "implicit_accuracy": (margin > 0).float().mean()}
        return Loss(-logsigmoid(margin).mean(), metrics)
