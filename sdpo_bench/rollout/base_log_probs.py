"""What the base model says of sampled trajectories: for methods with a reference, and for the logged KL."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdpo_bench.models.policy import Policy
from sdpo_bench.rollout.replay_step import unique_rows
from sdpo_bench.rollout.sampling import Trajectories, pick
from sdpo_bench.rollout.schedule import Schedule, gaussian_kl


@torch.no_grad()
def base_statistics(
    policy: Policy,
    schedule: Schedule,
    trajectories: Trajectories,
    groups: Sequence[int],
    micro_batch: int,
    members: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities under the present (reference) model and KL of the sampling policy to it, both ``[n, g, T]`` of
    the first ``members`` of each group, or of all.

    A step that draws no noise has no KL: NaN, since 0 would say that the policies agree. The sampling policy's mean is
    recovered from the stored predicted originals, so only the reference model is called.
    """
    g, steps = min(members or trajectories.latents.shape[1], trajectories.latents.shape[1]), trajectories.num_steps
    if not groups:
        return (none := trajectories.log_probs[:0, :g]), none
    chosen = torch.tensor(list(groups))
    log_probs, kls = [], []
    # The states are known, so steps need not wait for each other and share calls.
    every = torch.arange(len(chosen) * steps)
    for part in every.split(max(1, micro_batch // g)):
        group, step = chosen[part // steps], part % steps
        rows, inverse = unique_rows(step, g, trajectories.shared_start)
        before, after, x0 = (
            pick(states, group, at, policy.device)[:, :g].flatten(0, 1)
            for states, at in (
                (trajectories.latents, step),
                (trajectories.latents, step + 1),
                (trajectories.x0, step),
            )
        )
        at = step.repeat_interleave(g)
        output = policy.predict(before[rows], schedule.timesteps[at[rows]], trajectories.conditioning[group[rows // g]])
        base = schedule.denoise(output[inverse], before, at)
        log_probs.append(schedule.log_prob(after, base))
        mean = schedule.mean_from_original(x0, before, at)
        kls.append(gaussian_kl(mean, base.mean, base.std).where(base.std.flatten() != 0, torch.nan))
    log_prob, kl = (torch.cat(values).view(len(chosen), steps, g).transpose(1, 2) for values in (log_probs, kls))
    return log_prob.contiguous(), kl.contiguous()
