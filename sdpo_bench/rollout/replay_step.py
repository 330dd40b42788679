"""One denoising step of stored trajectories under the present policy: its log-probabilities, with their graph."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_bench.ledger import Ledger
from sdpo_bench.models.policy import Policy
from sdpo_bench.rollout.sampling import Trajectories, pick
from sdpo_bench.rollout.schedule import Schedule, gaussian_kl


@dataclass(frozen=True)
class StepPass:
    """One step under the current policy: ``log_probs [b, G]``, ``kl [b, G]`` to the base and ``drift [b, G]`` from the
    policy that sampled where asked for, and the model ``output [u, C, h, w]`` with the step ``output_steps [u]`` of
    each of its rows."""

    log_probs: Tensor
    kl: Tensor | None
    drift: Tensor | None
    output: Tensor
    output_steps: Tensor

    @property
    def differentiable(self) -> dict[str, Tensor]:
        """What a loss can differentiate, ``[b, G]`` by the name it has in a minibatch."""
        found = {"log_probs": self.log_probs, "kl": self.kl, "drift": self.drift}
        return {name: value for name, value in found.items() if value is not None}


def step_pass(
    policy: Policy,
    schedule: Schedule,
    trajectories: Trajectories,
    groups: Tensor,
    steps: Tensor,
    ledger: Ledger,
    *,
    with_kl: bool,
    with_drift: bool = False,
) -> StepPass:
    """One step ``[b]`` of each group. Members that share their first state share its denoiser call here too.

    Args:
        ledger: charged for forward and, where the output carries a graph, backward calls.
        with_kl: also call the base model, for the KL of the policy's step to its own.
        with_drift: also the KL of the step to that of the policy that sampled, from the stored predicted originals.
    """
    b, g = len(groups), trajectories.latents.shape[1]
    rows, inverse = unique_rows(steps, g, trajectories.shared_start)
    before, after = (pick(trajectories.latents, groups, i, policy.device).flatten(0, 1) for i in (steps, steps + 1))
    at = steps.repeat_interleave(g)
    conditioning = trajectories.conditioning[groups[rows // g]]
    timesteps = schedule.timesteps[at[rows]]
    base = None
    if with_kl:  # before the policy's own call, whose graph then need not be in memory here
        with policy.reference(), ledger.during("reference"):
            base = schedule.denoise(policy.predict(before[rows], timesteps, conditioning)[inverse], before, at)
    with ledger.during("update"):
        output = policy.predict(before[rows], timesteps, conditioning)
    if output.requires_grad:
        output.retain_grad()
        ledger.backward += len(rows) * policy.branches
    denoised = schedule.denoise(output[inverse], before, at)
    log_probs = schedule.log_prob(after, denoised).view(b, g)
    drift = None
    if with_drift:
        x0 = pick(trajectories.x0, groups, steps, policy.device).flatten(0, 1)
        old_mean = schedule.mean_from_original(x0, before, at)
        drift = gaussian_kl(denoised.mean, old_mean, denoised.std).view(b, g)
    kl = None if base is None else gaussian_kl(denoised.mean, base.mean, denoised.std).view(b, g)
    return StepPass(log_probs, kl, drift, output, at[rows])


def unique_rows(steps: Tensor, members: int, shared_start: bool) -> tuple[Tensor, Tensor]:
    """Which of ``b * G`` states need a denoiser call, and where each state finds its output.

    Args:
        steps: int64 ``[b]``, the step of each group.

    Returns:
        ``rows [u]`` (flat state numbers, ascending) and ``inverse [b * G]`` with ``state = rows[inverse]``.
    """
    source = torch.arange(len(steps) * members).view(-1, members)
    if shared_start:
        source = torch.where(steps.cpu()[:, None] == 0, source[:, :1], source)
    return source.flatten().unique(return_inverse=True)
