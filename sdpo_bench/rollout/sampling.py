"""The shared sampling engine: denoising trajectories for every method, from the same prompts and the same noise.

Members of a group that start from the same noise share their first denoiser call (same latents, same output, same
predicted original); everything else is independent. All randomness comes from named seeds, so neither micro-batches
nor the number of processes change a trajectory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdpo_bench import seeds
from sdpo_bench.models.policy import Conditioning, Policy
from sdpo_bench.rollout.schedule import Denoised, Schedule


@dataclass(frozen=True)
class Trajectories:
    """Denoising trajectories of N prompt groups with G members each; float32 where the policy stores them.

    Attributes:
        prompts: N texts.
        conditioning: text conditioning, one row a group.
        latents: ``[N, G, T+1, C, h, w]``; ``latents[:, :, i]`` is the state before step i, the last one the sample.
        x0: ``[N, G, T, C, h, w]`` predicted original of each step.
        log_probs: ``[N, G, T]`` mean log-density of each step under the policy that sampled.
        shared_start: whether ``latents[:, :, 0]`` (and so ``x0[:, :, 0]``) is the same for all members.
    """

    prompts: tuple[str, ...]
    conditioning: Conditioning
    latents: Tensor
    x0: Tensor
    log_probs: Tensor
    shared_start: bool

    @property
    def num_steps(self) -> int:
        return self.x0.shape[2]


def pick(states: Tensor, groups: Tensor, steps: Tensor, device: torch.device) -> Tensor:
    """``states [N, G, T, ...]`` of trajectories at one step of each group ``[b]``, ``[b, G, ...]`` on ``device``."""
    # Advanced indices around a slice put the indexed axis first.
    return states[groups.to(states.device), :, steps.to(states.device)].to(device)


@dataclass(frozen=True)
class Noise:
    """Where a rollout's randomness comes from: ``axes`` name it, e.g. ``(seed, "train", epoch)``.

    Groups are named by number or by text, members by number; the name alone decides the noise.
    """

    axes: tuple[seeds.Axis, ...]

    def initial(self, shape: tuple[int, ...], groups: Sequence[seeds.Axis], members: int, shared: bool) -> Tensor:
        """``[N, G, C, h, w]``: one draw a group where it is shared, else one a member."""
        if not groups:
            return torch.empty(0, members, *shape)
        drawn = 1 if shared else members
        rows = [[seeds.normal(shape, *self.axes, "initial", g, m) for m in range(drawn)] for g in groups]
        return torch.stack([torch.stack(row) for row in rows]).expand(-1, members, *shape)

    def steps(self, shape: tuple[int, ...], groups: Sequence[seeds.Axis], members: int, num_steps: int) -> Tensor:
        """``[N, G, T, C, h, w]`` step noise, independent for every member."""
        if not groups:
            return torch.empty(0, members, num_steps, *shape)
        rows = [
            [seeds.normal((num_steps, *shape), *self.axes, "step", num_steps, g, m) for m in range(members)]
            for g in groups
        ]
        return torch.stack([torch.stack(row) for row in rows])

    def fresh(self, shape: tuple[int, ...], group: seeds.Axis, members: int, step: int, *, shared: bool) -> Tensor:
        """``[G, C, h, w]`` noise for the final samples of one group at the level of step ``step``."""
        drawn = [seeds.normal(shape, *self.axes, "fresh", step, group, m) for m in range(1 if shared else members)]
        return torch.stack(drawn).expand(members, *shape)


@torch.no_grad()
def rollout(
    policy: Policy,
    schedule: Schedule,
    prompts: Sequence[str],
    noise: Noise,
    *,
    groups: Sequence[seeds.Axis],
    members: int = 1,
    shared_noise: bool = False,
    micro_batch: int = 64,
) -> Trajectories:
    """Sample ``members`` trajectories for each prompt.

    Args:
        prompts: N texts, one a group.
        groups: N global group names; they decide the noise, so a process may sample any part of an epoch.
        micro_batch: at most this many latents in one denoiser call; changes no result.
    """
    start = noise.initial(policy.latent_shape, groups, members, shared_noise)
    steps = noise.steps(policy.latent_shape, groups, members, schedule.num_steps)
    shared_start = shared_noise and members > 1
    return replay(policy, schedule, prompts, start, steps, shared_start=shared_start, micro_batch=micro_batch)


@torch.no_grad()
def replay(
    policy: Policy,
    schedule: Schedule,
    prompts: Sequence[str],
    start: Tensor,
    step_noise: Tensor,
    *,
    shared_start: bool,
    micro_batch: int = 64,
    conditioning: Conditioning | None = None,
) -> Trajectories:
    """Trajectories from given initial latents ``[N, G, C, h, w]`` and step noise ``[N, G, T, C, h, w]``."""
    conditioning = conditioning or policy.encode(prompts)
    n, g = start.shape[:2]
    latents, x0s, log_probs = [start.to(policy.storage)], [], []
    for step, following in _walk(policy, schedule, start, step_noise, conditioning, shared_start, micro_batch):
        log_probs.append(schedule.log_prob(following.flatten(0, 1), step).view(n, g))
        x0s.append(step.x0.view_as(following).to(policy.storage))
        latents.append(following.to(policy.storage))
    return Trajectories(
        prompts=tuple(prompts),
        conditioning=conditioning,
        latents=torch.stack(latents, 2),
        x0=torch.stack(x0s, 2),
        log_probs=torch.stack(log_probs, 2),
        shared_start=shared_start,
    )


@torch.no_grad()
def sample(
    policy: Policy,
    schedule: Schedule,
    prompts: Sequence[str],
    noise: Noise,
    *,
    groups: Sequence[seeds.Axis],
    micro_batch: int = 64,
) -> tuple[Tensor, Tensor]:
    """The samples and the last step's predicted originals alone, ``[N, C, h, w]`` each: what evaluation looks at."""
    samples, originals = [], []
    for part in torch.arange(len(prompts)).split(micro_batch):
        chosen = [groups[i] for i in part.tolist()]
        start = noise.initial(policy.latent_shape, chosen, 1, shared=False)
        steps = noise.steps(policy.latent_shape, chosen, 1, schedule.num_steps)
        conditioning = policy.encode([prompts[i] for i in part.tolist()])
        for step, following in _walk(policy, schedule, start, steps, conditioning, False, micro_batch):
            last = step.x0, following[:, 0]
        originals.append(last[0])
        samples.append(last[1])
    return torch.cat(samples), torch.cat(originals)


@torch.no_grad()
def completions(
    policy: Policy,
    schedule: Schedule,
    trajectories: Trajectories,
    states: Sequence[int],
    *,
    shared_until: int,
    image: Literal["sample", "predicted"] = "sample",
    micro_batch: int = 64,
) -> Tensor:
    """Where the states of stored trajectories lead without further noise: final latents ``[N, G, S, C, h, w]``.

    The first step from a state needs no denoiser call, since its predicted original is stored: completing state i
    costs T - i - 1 calls.

    Args:
        states: steps whose state (before the step) is completed, S of them.
        shared_until: members that share their start are in the same state up to this step, which is completed once.
        image: the sample, or the predicted original of the last step.
    """
    latents, n, members = trajectories.latents, *trajectories.latents.shape[:2]
    if not n or not states:
        return latents[:, :, : len(states)]
    ode, found = schedule.deterministic(), []
    for state in states:
        distinct = 1 if trajectories.shared_start and state <= shared_until else members
        start, x0 = (values[:, :distinct, state].flatten(0, 1) for values in (latents, trajectories.x0))
        group = torch.arange(n).repeat_interleave(distinct)
        ends = [
            _complete(policy, ode, start[part], x0[part], trajectories.conditioning[group[part]], state, image)
            for part in torch.arange(len(start)).split(micro_batch)
        ]
        end = torch.cat(ends).to(policy.storage).unflatten(0, (n, distinct))
        found.append(end.expand(n, members, *end.shape[2:]))
    return torch.stack(found, 2)


def _complete(
    policy: Policy, ode: Schedule, start: Tensor, x0: Tensor, conditioning: Conditioning, state: int, image: str
) -> Tensor:
    """Final latents ``[n, C, h, w]`` of states whose predicted originals are known."""
    current, x0 = start.to(policy.device), x0.to(policy.device)
    for i in range(state, ode.num_steps):
        at = torch.full((len(current),), i)
        if i == state:
            current = ode.mean_from_original(x0, current, at)
            continue
        output = policy.predict(current, ode.timesteps[i].expand(len(current)), conditioning)
        step = ode.denoise(output, current, at)
        current, x0 = step.mean, step.x0
    return x0 if image == "predicted" else current


def _walk(
    policy: Policy,
    schedule: Schedule,
    start: Tensor,
    step_noise: Tensor,
    conditioning: Conditioning,
    shared_start: bool,
    micro_batch: int,
) -> Iterator[tuple[Denoised, Tensor]]:
    """Denoise step by step: the Gaussian of each step (flat ``[N * G, ...]``) and the state drawn from it."""
    n, g = start.shape[:2]
    current = start.to(policy.device)
    for i in range(schedule.num_steps):
        # The members' first state is identical, so its output is computed for one and given to all.
        states = current[:, :1] if shared_start and i == 0 else current
        output = _predict(policy, schedule, states, i, conditioning, micro_batch)
        output = output.expand(n, g, *output.shape[2:])
        step = schedule.denoise(output.flatten(0, 1), current.flatten(0, 1), torch.full((n * g,), i))
        current = (step.mean + step.std * step_noise[:, :, i].to(current).flatten(0, 1)).view(current.shape)
        yield step, current


def _predict(
    policy: Policy, schedule: Schedule, states: Tensor, i: int, conditioning: Conditioning, micro_batch: int
) -> Tensor:
    """Model output ``[N, G', C, h, w]`` for states of the same shape, in micro-batches."""
    n, g = states.shape[:2]
    if not n:
        return torch.empty_like(states)
    rows = torch.arange(n).repeat_interleave(g)
    flat = states.flatten(0, 1)
    outputs = [
        policy.predict(flat[part], schedule.timesteps[i].expand(len(part)), conditioning[rows[part]])
        for part in torch.arange(n * g).split(micro_batch)
    ]
    return torch.cat(outputs).view(states.shape)
