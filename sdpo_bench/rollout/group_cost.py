"""What one prompt group costs, before it is sampled: the arithmetic behind budgets, plans and estimates.

The numbers are exact, not estimates: a test counts the real calls of every method and compares.
"""

from sdpo_bench.api import Method
from sdpo_bench.ledger import Cost

PROBE_GROUPS = 2  # groups an epoch whose KL to the base model is measured when the method itself does not


def group_cost(
    method: Method, weights: list[float], *, inner_epochs: int, guided: bool, calls_per_image: int = 1
) -> Cost:
    """Cost of sampling, scoring and learning from one group.

    Args:
        weights: step weight of each of the T steps; steps of weight 0 are not trained.
        calls_per_image: reward calls that one image costs, the number of parts of a weighted sum. Answers that the
            cache remembers cost less than this.
    """
    steps, members = len(weights), method.members
    branches = 2 if guided else 1
    if method.signal == "none":
        return Cost(0, 0, 0, 0)
    if method.signal == "gradient":
        return _backprop_cost(method, steps, inner_epochs, branches, calls_per_image)
    rows = [step_rows(method, i) for i in range(steps)]
    sampled = sum(rows)
    if method.granularity in ("noised", "sample"):
        forward, backward = _likelihood_free_calls(method, steps, sampled, inner_epochs)
        rewards = reward_queries(method, steps) * calls_per_image
        return Cost(members, forward * branches, backward * branches, rewards)
    trained = sum(row for row, weight in zip(rows, weights) if weight > 0)
    forward = sampled + inner_epochs * trained
    if method.granularity == "trajectory":
        forward += inner_epochs * sampled
    if method.needs_reference:
        forward += sampled
    if method.needs_kl:
        passes = trained + (sampled if method.granularity == "trajectory" else 0)
        forward += inner_epochs * passes
    return Cost(
        images=members,
        forward=forward * branches,
        backward=inner_epochs * trained * branches,
        rewards=reward_queries(method, steps) * calls_per_image,
    )


def _likelihood_free_calls(method: Method, steps: int, sampled: int, inner_epochs: int) -> tuple[int, int]:
    """Forward and backward calls of one group: sampling, and each update with what it compares with."""
    if method.granularity == "noised":
        trained = inner_epochs * steps * method.members
        return sampled + trained * (1 + method.needs_old + method.needs_reference), trained
    trained = inner_epochs * method.backprop(steps).depth * method.members
    return sampled * (1 + method.needs_reference) + trained, trained


def _backprop_cost(method: Method, steps: int, inner_epochs: int, branches: int, calls_per_image: int) -> Cost:
    """Sampling, then the last steps again with their graph; scores are asked for, and differentiated, there alone."""
    sampled = sum(step_rows(method, i) for i in range(steps)) * branches
    again = method.backprop(steps).depth * method.members * inner_epochs * branches
    return Cost(method.members, sampled + again, again, 2 * method.members * inner_epochs * calls_per_image)


def step_rows(method: Method, step: int) -> int:
    """Denoiser evaluations that step ``step`` of one group needs: 1 where all members share their state."""
    return 1 if method.shared_noise and step == 0 else method.members


def reward_queries(method: Method, steps: int) -> int:
    """Reward calls of one group: distinct (member, step) images among the queried ones."""
    members = method.members
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
    return min(PROBE_GROUPS, groups) * sum(step_rows(method, i) for i in range(steps)) * (2 if guided else 1)
