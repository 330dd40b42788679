"""Direct reward back-propagation: run the last denoising steps again with their graph and differentiate the reward.

This is the upper line beside which policy-gradient methods are seen: it uses what they do without, a reward that can
be differentiated. The steps before come from the stored trajectory, and the step noise is the stored one.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from sdpo_bench.api import Backprop
from sdpo_bench.models.policy import Policy
from sdpo_bench.rollout.sampling import Trajectories, pick
from sdpo_bench.rollout.schedule import Schedule

OnStep = Callable[[Tensor, Tensor], None]


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
    state = lambda states, steps: pick(states, groups, steps, policy.device).flatten(0, 1)  # noqa: E731
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
