"""A critic that a method trains beside the policy: made from the seed alone, asked for the value of stored states."""

import torch
from torch import Tensor

from sdpo_bench.api import Critic, Method
from sdpo_bench.errors import RunFailed
from sdpo_bench.models.policy import Policy
from sdpo_bench.plugins.call import plugin_code
from sdpo_bench.rollout.sampling import Trajectories, pick
from sdpo_bench.seeds import seed_for


def seeded_critic(method: Method, policy: Policy, num_steps: int, seed: int) -> Critic | None:
    """The method's critic, if it has one, initialised from the seed alone."""
    who = f"method '{type(method).__name__}': critic()"
    with torch.random.fork_rng(devices=[]), plugin_code(who):
        torch.manual_seed(seed_for(seed, "critic"))
        critic = method.critic(policy.latent_shape, num_steps)
    if critic is not None:
        _check(critic, who)
        critic.network.to(policy.device, torch.float32)
    return critic


def _check(critic: object, who: str) -> None:
    if not isinstance(critic, Critic) or not isinstance(critic.network, torch.nn.Module):
        got = type(critic.network if isinstance(critic, Critic) else critic).__name__
        raise RunFailed(f"{who} gave {got}; expected sdpo_bench.api.Critic with a torch.nn.Module, or None.")
    if not any(True for _ in critic.network.parameters()):
        raise RunFailed(f"{who} gave a network without parameters, which cannot learn.")
    state = (*critic.network.parameters(), *critic.network.buffers())
    if any(torch.nn.parameter.is_lazy(value) for value in state):
        raise RunFailed(f"{who} gave a lazy network; expected one with sizes, e.g. Linear(4, 1) for LazyLinear(1).")
    if isinstance(critic.lr, bool) or not isinstance(critic.lr, int | float) or not 0 < critic.lr < float("inf"):
        raise RunFailed(f"{who} gave lr = {critic.lr!r}; expected a number above 0.")


def state_values(network: torch.nn.Module, trajectories: Trajectories, groups: Tensor, steps: Tensor) -> Tensor:
    """Values ``[b, G, K]`` of the states before ``steps [b, K]`` of ``groups [b]``.

    Raises:
        RunFailed: the network raises, or does not give one value for each state.
    """
    device = next(network.parameters()).device
    states = pick(trajectories.latents, groups[:, None], steps, device).transpose(1, 2)
    at = steps[:, None].expand(states.shape[:3]).to(device)
    who = f"the method's critic, a {type(network).__name__},"
    with plugin_code(who):
        values = network(states.flatten(0, 2), at.flatten())
    if not isinstance(values, Tensor) or values.numel() != at.numel():
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise RunFailed(f"{who} gave {got} for {at.numel()} states; expected a tensor of shape ({at.numel()},).")
    return values.reshape(at.shape)


@torch.no_grad()
def every_value(network: torch.nn.Module, trajectories: Trajectories, batch: int) -> Tensor:
    """Values ``[N, G, T]`` of every state, ``batch`` groups at a time."""
    parts, every = torch.arange(len(trajectories.prompts)).split(batch), torch.arange(trajectories.num_steps)
    return torch.cat([state_values(network, trajectories, part, every.expand(len(part), -1)) for part in parts])
