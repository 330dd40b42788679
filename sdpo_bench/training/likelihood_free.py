"""Denoiser passes of the methods that need no log-probabilities, as minibatches whose graph reaches the adapter.

Three kinds: samples that are noised again (NFT and its kin), the final latents themselves (DrPO), and the rewards of
final images (DRaFT, ReFL). The last two run the last denoising steps again with their graph; the steps before come from
the stored trajectory, and the step noise is the stored one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sdpo_bench.advantages.experience import Experience, take
from sdpo_bench.advantages.run_context import RunContext
from sdpo_bench.api import Backprop, Minibatch, Noised
from sdpo_bench.models.policy import Policy
from sdpo_bench.rollout.noised_pass import noised_pass
from sdpo_bench.rollout.sampling import Trajectories, pick
from sdpo_bench.rollout.schedule import Schedule
from sdpo_bench.scoring.sample_features import sample_features
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.training.shared_calls import together
from sdpo_bench.training.update_order import Task

OnStep = Callable[[Tensor, Tensor], None]


@dataclass(frozen=True)
class LikelihoodFreePass:
    """What one denoiser pass gives to the losses."""

    batches: list[Minibatch]
    """One for each part of the pass, in order."""
    outputs: list[tuple[Tensor, Tensor]]
    """Model outputs ``[n, C, h, w]`` that keep their gradient, and their step numbers ``[n]``."""


def noised_minibatches(
    context: RunContext, experience: Experience, parts: Sequence[Task], old: Mapping[str, Tensor] | None
) -> LikelihoodFreePass:
    """Minibatches of noised samples, each at one level a group, from one call.

    Args:
        old: adapter weights of the policy that samples, where the method compares with it.
    """
    task = together(parts)
    assert experience.fresh is not None
    now = noised_pass(
        context.policy,
        context.schedule,
        experience.trajectories,
        task.groups,
        task.steps[:, 0],
        context.ledger,
        method=context.method,
        noise=experience.fresh,
        names=[experience.names[row] for row in task.groups.tolist()],
        old=old,
    )
    batches, start = [], 0
    for part in parts:
        rows = slice(start, start + len(part.groups))
        plain = _without_likelihood(context, experience, part.groups, part.steps)
        batches.append(replace(plain, noised=_rows(now.noised, rows)))
        start = rows.stop
    return LikelihoodFreePass(batches, [(now.output, now.output_steps)])


def sample_minibatch(
    context: RunContext, scorer: Scorer | None, experience: Experience, task: Task
) -> LikelihoodFreePass:
    """A minibatch of final latents or their features, differentiated through the last denoising steps."""
    groups = task.groups
    latents, outputs = _differentiated_latents(context, experience, task)
    samples = sample_features(context.policy, scorer, context.ledger, latents, context.method.sample_features)
    batch = replace(
        _without_likelihood(context, experience, groups, task.steps[:, :0]),
        samples=samples.unflatten(0, (len(groups), -1)),
        ref_samples=None if experience.ref_samples is None else experience.ref_samples[groups].to(samples),
    )
    return LikelihoodFreePass([batch], outputs)


def reward_minibatch(context: RunContext, scorer: Scorer, experience: Experience, task: Task) -> LikelihoodFreePass:
    """A minibatch of rewards, differentiated through the autoencoder and the last denoising steps."""
    trajectories, groups = experience.trajectories, task.groups
    members = trajectories.latents.shape[1]
    latents, outputs = _differentiated_latents(context, experience, task, decoded=True)
    prompts = [trajectories.prompts[g] for g in groups.repeat_interleave(members).tolist()]
    rewards = scorer.differentiable(latents, prompts).to(latents.device).view(len(groups), members)
    return LikelihoodFreePass([rewards_alone(rewards, trajectories.num_steps)], outputs)


def rewards_alone(rewards: Tensor, num_steps: int) -> Minibatch:
    """A minibatch of rewards ``[b, G]`` with their graph, and of no step's log-probability."""
    empty = rewards.new_zeros(*rewards.shape, 0)
    steps = torch.zeros(len(rewards), 0, dtype=torch.int64)
    return Minibatch(empty, empty, None, None, empty, rewards, steps, num_steps)


def _differentiated_latents(
    context: RunContext, experience: Experience, task: Task, *, decoded: bool = False
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Final latents of a minibatch, or their images, with the graph of the last steps; and the outputs of these."""
    outputs: list[tuple[Tensor, Tensor]] = []

    def on_step(output: Tensor, steps: Tensor) -> None:
        output.retain_grad()
        context.ledger.backward += len(output) * context.policy.branches
        outputs.append((output, steps))

    method, trajectories = context.method, experience.trajectories
    plan = method.backprop(trajectories.num_steps)
    last = last_steps(task.steps, plan.window)
    with context.ledger.during("update"):
        latents = final_latents(
            context.policy, context.schedule, trajectories, task.groups, last, plan, method.final_image, on_step
        )
        return (context.policy.decode(latents) if decoded else latents), outputs


def _without_likelihood(context: RunContext, experience: Experience, groups: Tensor, steps: Tensor) -> Minibatch:
    """Rewards and advantages of ``groups [b]`` at ``steps [b, K]``, and log-probabilities of no step."""
    device = context.policy.device
    groups, steps = groups.to(device), steps.to(device)
    final = experience.final_rewards.to(device)[groups]
    advantages = experience.advantages
    return Minibatch(
        log_probs=final.new_zeros(*final.shape, 0),
        old_log_probs=final.new_zeros(*final.shape, 0),
        ref_log_probs=None,
        advantages=None if advantages is None else take(advantages, groups, steps),
        rewards=take(experience.rewards, groups, steps),
        final_rewards=final,
        steps=steps,
        num_steps=experience.trajectories.num_steps,
    )


def _rows(noised: Noised, rows: slice) -> Noised:
    """Some groups of a minibatch."""
    part: dict[str, Any] = {name: None if value is None else value[rows] for name, value in vars(noised).items()}
    return Noised(**part)


# -- the last denoising steps again, with their graph ----------------------------------------------------------


def last_steps(order: Tensor, window: int) -> Tensor:
    """The last differentiated step ``[b]`` of each group: the first of the last ``window`` steps in its own order.

    Args:
        order: int64 ``[b, T]``, a uniformly random permutation of steps a group, so the choice is uniform too.
    """
    eligible = order >= order.shape[1] - window
    return order.gather(1, eligible.int().argmax(1, keepdim=True))[:, 0]


def final_latents(
    policy: Policy,
    schedule: Schedule,
    trajectories: Trajectories,
    groups: Tensor,
    last: Tensor,
    plan: Backprop,
    image: Literal["sample", "predicted"],
    on_step: OnStep,
) -> Tensor:
    """Final latents ``[b * G, C, h, w]`` whose graph reaches back through ``plan.depth`` steps to the adapter.

    Args:
        last: int64 ``[b]``, the last differentiated step of each group.
        image: the sample, or the predicted original of the last differentiated step.
        on_step: told the model output ``[b * G, C, h, w]`` of each step, and its step numbers ``[b * G]``.
    """
    members = trajectories.latents.shape[1]
    conditioning = trajectories.conditioning[groups.repeat_interleave(members)]
    first = last - plan.depth + 1

    def state(states: Tensor, steps: Tensor) -> Tensor:
        return pick(states, groups, steps, policy.device).flatten(0, 1)

    current = state(trajectories.latents, first)
    for k in range(plan.depth):
        at = (first + k).repeat_interleave(members)
        output = policy.predict(current, schedule.timesteps[at], conditioning)
        on_step(output, at)
        step = schedule.denoise(output, current, at)
        # The stored step drew its noise around the mean that the sampling policy predicted then.
        before, x0 = state(trajectories.latents, first + k), state(trajectories.x0, first + k)
        noise = state(trajectories.latents, first + k + 1) - schedule.mean_from_original(x0, before, at)
        current = step.mean + noise
    return current if image == "sample" else step.x0
