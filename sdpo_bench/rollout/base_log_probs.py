"""What the base model says of sampled trajectories: for methods with a reference, and for the logged KL."""

from collections.abc import Sequence

import torch
from torch import Tensor

from sdpo_bench.models.policy import Policy
from sdpo_bench.rollout.replay_step import unique_rows
from sdpo_bench.rollout.sampling import Trajectories
from sdpo_bench.rollout.schedule import Schedule, gaussian_kl, gaussian_log_prob


@torch.no_grad()
def base_statistics(
    policy: Policy, schedule: Schedule, trajectories: Trajectories, groups: Sequence[int], micro_batch: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities under the present (reference) model and KL of the sampling policy to it, both ``[n, G, T]``.

    The sampling policy's mean is recovered from the stored predicted originals, so only the reference model is called.
    """
    g, steps = trajectories.latents.shape[1], trajectories.num_steps
    if not groups:
        return (none := trajectories.log_probs[:0]), none
    log_probs, kls = [], []
    for part in torch.tensor(list(groups)).split(max(1, micro_batch // g)):
        for i in range(steps):
            rows, inverse = unique_rows(torch.full((len(part),), i), g, trajectories.shared_start)
            before, after, x0 = (
                states[part, :, j].flatten(0, 1).to(policy.device)
                for states, j in ((trajectories.latents, i), (trajectories.latents, i + 1), (trajectories.x0, i))
            )
            at = torch.full((len(before),), i)
            output = policy.predict(
                before[rows], schedule.timesteps[at[rows]], trajectories.conditioning[part[rows // g]]
            )
            base = schedule.denoise(output[inverse], before, at)
            log_probs.append(gaussian_log_prob(after, base.mean, base.std).view(-1, g))
            mean = schedule.mean_from_original(x0, before, at)
            kls.append(gaussian_kl(mean, base.mean, base.std).view(-1, g))
    by_part = [torch.stack(log_probs[k : k + steps], -1) for k in range(0, len(log_probs), steps)]
    kl_parts = [torch.stack(kls[k : k + steps], -1) for k in range(0, len(kls), steps)]
    return torch.cat(by_part), torch.cat(kl_parts)
