"""Final samples with fresh noise, and what the policy, the policy that sampled and the base model take them for.

This is all that likelihood-free methods need of a model: no transition of a sampler, so any sampler and a single step
will do. The noise levels are those of the schedule's own steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sdpo_bench.api import Method, Noised
from sdpo_bench.ledger import Ledger
from sdpo_bench.models.conditioning import Conditioning
from sdpo_bench.models.policy import Policy
from sdpo_bench.rollout.sampling import Noise, Trajectories
from sdpo_bench.rollout.schedule import Schedule
from sdpo_bench.rollout.trailing_weights import Weights


@dataclass(frozen=True)
class NoisedPass:
    """What the loss sees, and the model ``output [b * G, C, h, w]`` at the steps ``output_steps [b * G]``."""

    noised: Noised
    output: Tensor
    output_steps: Tensor


def noised_pass(
    policy: Policy,
    schedule: Schedule,
    trajectories: Trajectories,
    groups: Tensor,
    steps: Tensor,
    ledger: Ledger,
    *,
    method: Method,
    noise: Noise,
    names: list[int],
    old: Weights | None,
) -> NoisedPass:
    """Noise the samples of ``groups [b]`` at the levels of ``steps [b]`` and ask the models for their originals.

    Args:
        names: global number of each group; it decides the noise.
        old: adapter of the policy that sampled, for methods that need it.
    """
    members, device = trajectories.latents.shape[1], policy.device
    clean = trajectories.latents[groups.to(trajectories.latents.device), :, -1].to(device)
    fresh = torch.stack(
        [
            noise.fresh(policy.latent_shape, name, members, step, shared=method.same_fresh_noise)
            for name, step in zip(names, steps.tolist())
        ]
    ).to(clean)
    at = steps.repeat_interleave(members)
    latents = schedule.add_noise(clean.flatten(0, 1), fresh.flatten(0, 1), at)
    conditioning = trajectories.conditioning[groups.repeat_interleave(members)]
    if not method.guided_loss:
        conditioning = Conditioning(conditioning.positive)

    def original(output: Tensor) -> Tensor:
        return schedule.denoise(output, latents, at).x0.view_as(clean)

    def ask() -> Tensor:
        return policy.predict(latents, schedule.timesteps[at], conditioning)

    # The policy comes last, so that the other calls are made without its graph in memory.
    old_original = ref_original = None
    if method.needs_old:
        assert old is not None
        with policy.using(old), ledger.during("reference"):
            old_original = original(ask())
    if method.needs_reference:
        with policy.reference(), ledger.during("reference"):
            ref_original = original(ask())
    with ledger.during("update"):
        output = ask()
    if output.requires_grad:
        output.retain_grad()
        ledger.backward += len(output) * (policy.branches if method.guided_loss else 1)
    level = schedule.noise_levels()[steps].to(clean).view(-1, 1, 1, 1, 1)
    return NoisedPass(Noised(clean, original(output), level, old_original, ref_original), output, at)
