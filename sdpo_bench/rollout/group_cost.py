"""What one prompt group costs, before it is sampled: the arithmetic behind budgets, plans and estimates.

The numbers are exact, not estimates: a test counts the real calls of every method and compares.
"""

from collections.abc import Sequence

from sdpo_bench.api import COMPLETED_MODES, Method
from sdpo_bench.ledger import Cost

PROBE_GROUPS, PROBE_MEMBERS = 2, 2
"""Groups an epoch, and trajectories of each, whose KL to the base model is measured when the method itself does not.
As many for large groups as for pairs, since a budget of denoiser calls has these calls in it."""


def group_cost(
    method: Method,
    weights: list[float],
    *,
    inner_epochs: int,
    guided: bool,
    calls_per_image: int = 1,
    drawing: Sequence[int] | None = None,
) -> Cost:
    """Cost of sampling, scoring and learning from one group.

    Args:
        weights: step weight of each of the T steps; steps of weight 0 are not trained.
        calls_per_image: reward calls that one image costs, the number of parts of a weighted sum. Answers that the
            cache remembers cost less than this.
        drawing: steps that draw noise; None: all. Only rewards of completions depend on them.
    """
    steps, members = len(weights), method.members
    branches = 2 if guided else 1
    if method.signal == "none":
        return Cost(0, 0, 0, 0)
    if method.signal == "gradient":
        return _backprop_cost(method, steps, inner_epochs, branches, calls_per_image)
    drawing = range(steps) if drawing is None else drawing
    rewards = reward_queries(method, steps, drawing) * calls_per_image
    rows = [step_rows(method, i) for i in range(steps)]
    sampled = sum(rows)
    completed = completion_calls(method, steps, drawing)
    if method.granularity in ("noised", "sample"):
        forward, backward = _likelihood_free_calls(method, steps, sampled, inner_epochs, branches)
        seen = feature_calls(method, inner_epochs)
        scored = seen * calls_per_image if method.sample_features == "scorer" else 0
        decoded = seen if method.sample_features == "pixels" else 0
        return Cost(members, forward + completed * branches, backward, rewards + scored, decoded)
    trained = sum(row for row, weight in zip(rows, weights) if weight > 0)
    passes = trained * (2 if method.granularity == "trajectory" else 1)  # without and with a graph
    forward = sampled + completed + inner_epochs * passes
    if method.needs_reference:
        forward += sampled
    if method.needs_kl:
        forward += inner_epochs * passes
    return Cost(
        images=members,
        forward=forward * branches,
        backward=inner_epochs * trained * branches,
        rewards=rewards,
    )


def _likelihood_free_calls(
    method: Method, steps: int, sampled: int, inner_epochs: int, branches: int
) -> tuple[int, int]:
    """Forward and backward calls of one group: sampling, and each update with what it compares with."""
    if method.granularity == "noised":
        trained = inner_epochs * steps * method.members * (branches if method.guided_loss else 1)
        return sampled * branches + trained * (1 + method.needs_old + method.needs_reference), trained
    trained = inner_epochs * method.backprop(steps).depth * method.members * branches
    return sampled * branches * (1 + method.needs_reference) + trained, trained


def feature_calls(method: Method, inner_epochs: int) -> int:
    """Calls of the decoder or of the reward's network for one group, where a loss looks at pixels or features: two for
    each sample of an update, of which one is its gradient, and one for each sample of the base model."""
    if method.granularity != "sample" or method.sample_features == "latent":
        return 0
    return (2 * inner_epochs + method.needs_reference) * method.members


def _backprop_cost(method: Method, steps: int, inner_epochs: int, branches: int, calls_per_image: int) -> Cost:
    """Sampling, then the last steps again with their graph; scores are asked for, and differentiated, there alone."""
    sampled = sum(step_rows(method, i) for i in range(steps)) * branches
    again = method.backprop(steps).depth * method.members * inner_epochs * branches
    return Cost(method.members, sampled + again, again, 2 * method.members * inner_epochs * calls_per_image)


def step_rows(method: Method, step: int) -> int:
    """Denoiser evaluations that step ``step`` of one group needs: 1 where all members share their state."""
    return 1 if method.shared_noise and step == 0 else method.members


def influential_steps(method: Method, steps: int, drawing: Sequence[int]) -> list[int]:
    """Steps whose noise changes the final picture: those that draw, without the last one where the picture is its
    predicted original."""
    return [i for i in drawing if method.final_image == "sample" or i < steps - 1]


def completed_states(method: Method, steps: int, drawing: Sequence[int]) -> list[int]:
    """Steps whose state is completed for a reward. Deterministic steps lead where the next random one starts, and
    after the last random one the sample itself is the completion. ``branch`` does not ask for the first one."""
    if method.reward_mode not in COMPLETED_MODES:
        return []
    random = influential_steps(method, steps, drawing)
    return random[1:] if method.reward_mode == "branch" else random


def _completed_rows(method: Method, state: int, drawing: Sequence[int]) -> int:
    """Distinct states of a group before step ``state``: one up to the first random step where the start is shared."""
    return 1 if method.shared_noise and state <= min(drawing) else method.members


def completion_calls(method: Method, steps: int, drawing: Sequence[int]) -> int:
    """Denoiser evaluations of one group for its completions (``sampling.completions``)."""
    states = completed_states(method, steps, drawing)
    return sum((steps - i - 1) * _completed_rows(method, i, drawing) for i in states)


def reward_queries(method: Method, steps: int, drawing: Sequence[int]) -> int:
    """Reward calls of one group: distinct (member, step) images among the queried ones."""
    members = method.members
    if method.reward_mode in COMPLETED_MODES:
        return members + sum(_completed_rows(method, i, drawing) for i in completed_states(method, steps, drawing))
    if method.reward_mode == "sparse":
        queried = [steps - 1]
    elif method.reward_mode == "full":
        queried = list(range(steps))
    else:
        queried = sorted({0, steps - 1}) + ([-1] if steps > 2 else [])
    decode_sample = method.reward_mode == "sparse" and method.final_image == "sample"
    return sum(1 if method.shared_noise and i == 0 and not decode_sample else members for i in queried)


def probe_cost(method: Method, steps: int, groups: int, *, guided: bool) -> int:
    """Denoiser calls an epoch for measuring the KL to the base model, outside the groups' own cost."""
    if method.needs_reference and method.granularity in ("step", "trajectory"):
        return 0
    rows = sum(min(PROBE_MEMBERS, step_rows(method, i)) for i in range(steps))
    return min(PROBE_GROUPS, groups) * rows * (2 if guided else 1)
