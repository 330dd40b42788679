"""A critic that a method trains beside the policy: made from the seed alone, asked for the value of stored states."""

import torch
from torch import Tensor

from sdpo_bench.api import Critic, Method
from sdpo_bench.policy import Policy
from sdpo_bench.process_state import kept_process_state
from sdpo_bench.rollout import Trajectories, pick
from sdpo_bench.seeds import seed_for


def seeded_critic(method: Method, policy: Policy, num_steps: int, seed: int) -> Critic | None:
    """The method's critic, if it has one, initialised from the seed alone."""
    with torch.random.fork_rng(devices=[]), kept_process_state():
        torch.manual_seed(seed_for(seed, "critic"))
        critic = method.critic(policy.latent_shape, num_steps)
    if critic is not None:
        critic.network.to(policy.device, torch.float32)
    return critic


def state_values(network: torch.nn.Module, trajectories: Trajectories, groups: Tensor, steps: Tensor) -> Tensor:
    """Values ``[b, G, K]`` of the states before ``steps [b, K]`` of ``groups [b]``."""
    device = next(network.parameters()).device
    states = pick(trajectories.latents, groups[:, None], steps, device).transpose(1, 2)
    at = steps[:, None].expand(states.shape[:3]).to(device)
    values: Tensor = network(states.flatten(0, 2), at.flatten())
    return values.view(at.shape)


@torch.no_grad()
def every_value(network: torch.nn.Module, trajectories: Trajectories, batch: int) -> Tensor:
    """Values ``[N, G, T]`` of every state, ``batch`` groups at a time."""
    parts, every = torch.arange(len(trajectories.prompts)).split(batch), torch.arange(trajectories.num_steps)
    return torch.cat([state_values(network, trajectories, part, every.expand(len(part), -1)) for part in parts])
