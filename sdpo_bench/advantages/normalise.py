"""From rewards to advantages: discounted returns and the normalisation modes, with their running statistics.

The paper's point is *what* a return is compared with: all returns of the same prompt at the same denoising step
(``per-step-prompt``). The other modes exist for its ablation and for methods that came with them.

Rewards are float32. Everything from there to the advantages is float64: a return minus the mean of equal returns must
be 0 and not a rounding error, which the division by an equally small standard deviation would blow up to 1.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

Normalisation = Literal["per-step-prompt", "per-prompt", "per-step", "batch", "group", "none"]
STD_EPSILON = 1e-6  # added to every standard deviation (official trackers)
BATCH_EPSILON = 1e-8  # the batch mode's own (official ablation code)
GLOBAL_STD_EPSILON = 1e-4  # of groups that are divided by the batch's standard deviation (Flow-GRPO's global_std)
ROUNDING = float(np.finfo(np.float32).eps)  # largest relative distance of neighbours among the float32 rewards


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """``G_i = r_i + gamma G_{i+1}`` along the last axis ``[..., T]``, float64 on the CPU.

    Gamma 0 returns the rewards themselves.
    """
    rewards = rewards.cpu().double()  # in this order: some devices have no float64
    returns = [rewards[..., -1]]
    for i in range(rewards.shape[-1] - 2, -1, -1):
        returns.append(rewards[..., i] + gamma * returns[-1])
    return torch.stack(returns[::-1], -1)


def standardise(
    values: np.ndarray, sample: np.ndarray, axis: int | None, epsilon: float, divisor: np.ndarray | None = None
) -> np.ndarray:
    """``(values - mean) / (std + epsilon)`` with the mean and population standard deviation of ``sample``.

    Values of a sample whose standard deviation is below the float32 rounding of its mean differ by nothing that the
    scorer could express: they get exactly 0. The epsilon is the official, absolute one: of rewards with a standard
    deviation s, advantages are smaller than the exact ones by the factor s / (s + epsilon), 1 % at s = 1e-4 for 1e-6.

    Args:
        values: float64 ``[n, K]``.
        sample: float64 ``[m, K]``, which need not contain the values (a buffer drops the oldest).
        axis: 0 keeps the K steps apart, ``None`` pools them.
        divisor: standard deviation to divide by; None: the sample's.
    """
    mean, std = sample.mean(axis), sample.std(axis)
    gap = values - mean
    rounding = ROUNDING * np.abs(mean)
    # Each of m numbers lies within sqrt(m) standard deviations of their mean; what lies beyond is not of this sample.
    count = sample.size if axis is None else len(sample)
    equal = (std <= rounding) & (np.abs(gap) <= rounding * count**0.5)
    return np.where(equal, 0.0, gap / ((std if divisor is None else divisor) + epsilon))


class Normaliser:
    """Turns returns into advantages and remembers what it has seen of each prompt.

    The official buffer rule: a prompt's new values are appended to its buffer of ``buffer_size`` samples; while the
    buffer holds fewer than ``min_count``, mean and standard deviation are those of this batch, afterwards those of the
    buffer. Standard deviations are population ones. Buffers hold float64.
    """

    def __init__(
        self,
        mode: Normalisation,
        buffer_size: int = 32,
        min_count: int = 16,
        std: Literal["group", "batch"] = "group",
    ):
        self.mode = mode
        self.std = std
        self.buffer_size = buffer_size
        self.min_count = min_count
        self.buffers: dict[str, deque[np.ndarray]] = {}
        self.fallback: float | None = None
        """Share of the last call's rows that were compared with the whole batch, since their prompt had fewer than
        ``min_count`` samples; None in modes without this rule."""

    def __call__(self, returns: Tensor, prompts: Sequence[str]) -> Tensor:
        """Advantages of ``returns [R, K]`` (one row a trajectory), same shape and dtype.

        Args:
            prompts: prompt of each row; in the ``group`` mode the name of its group.
        """
        values = returns.detach().cpu().double().numpy()
        result = _MODES[self.mode](self, values, np.array(prompts))
        return torch.from_numpy(result).to(returns)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later advantages depend on, as float64 tensors ``[n, K]`` by prompt (oldest first)."""
        return {prompt: torch.from_numpy(np.stack(rows)) for prompt, rows in self.buffers.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`; float32 buffers (versions that normalised in float32) are taken as they are."""
        self.buffers = {p: deque(rows.numpy().astype(np.float64), maxlen=self.buffer_size) for p, rows in state.items()}

    def _per_prompt(self, values: np.ndarray, prompts: np.ndarray, axis: int | None) -> np.ndarray:
        """Per-prompt statistics with the buffer rule; ``axis`` 0 keeps steps apart, ``None`` pools them."""
        result, fallen_back = np.empty_like(values), 0
        for prompt in np.unique(prompts):
            mine = prompts == prompt
            buffer = self.buffers.setdefault(str(prompt), deque(maxlen=self.buffer_size))
            buffer.extend(values[mine])
            known = len(buffer) >= self.min_count
            fallen_back += 0 if known else int(mine.sum())
            sample = np.stack(buffer) if known else values
            result[mine] = standardise(values[mine], sample, axis, STD_EPSILON)
        self.fallback = fallen_back / len(values)
        return result

    def _per_step_prompt(self, values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        return self._per_prompt(values, prompts, axis=0)

    def _pooled_prompt(self, values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        return self._per_prompt(values, prompts, axis=None)

    def _per_step(self, values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        return standardise(values, values, 0, STD_EPSILON)

    def _batch(self, values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        return standardise(values, values, None, BATCH_EPSILON)

    def _group(self, values: np.ndarray, groups: np.ndarray) -> np.ndarray:
        """Members of one group against each other, step by step; remembers nothing (GRPO)."""
        divisor = values.std(0) if self.std == "batch" else None
        epsilon = STD_EPSILON if divisor is None else GLOBAL_STD_EPSILON
        result = np.empty_like(values)
        for group in np.unique(groups):
            mine = groups == group
            result[mine] = standardise(values[mine], values[mine], 0, epsilon, divisor)
        return result

    def _none(self, values: np.ndarray, prompts: np.ndarray) -> np.ndarray:
        return values.copy()


_MODES: dict[str, Callable[[Normaliser, np.ndarray, np.ndarray], np.ndarray]] = {
    "per-step-prompt": Normaliser._per_step_prompt,
    "per-prompt": Normaliser._pooled_prompt,
    "per-step": Normaliser._per_step,
    "batch": Normaliser._batch,
    "group": Normaliser._group,
    "none": Normaliser._none,
}


def advantages(
    rewards: Tensor,
    prompts: Sequence[str],
    normaliser: Normaliser,
    *,
    gamma: float,
    clip: float,
    sparse: bool,
    scored: Sequence[int] | None = None,
) -> Tensor:
    """Clipped advantages ``[N, G, T]`` of step rewards ``[N, G, T]`` of N prompts, same dtype and device.

    With a sparse reward and gamma 1 every step has the same return, so one column is normalised and shared, exactly
    as trajectory-level methods do it. Rows enter the buffers member by member (all first members, then all second
    ones), which is the official order.

    Args:
        scored: the steps that have a reward; None: all. The others get 0, and their returns are in no statistic: those
            of a pooled mode would be half zeros.
    """
    n, g, steps = rewards.shape
    returns = discounted_returns(rewards, gamma)
    if sparse and gamma == 1:
        returns = returns[..., -1:]
    if scored is not None:
        returns = returns[..., list(scored)]
    rows = returns.transpose(0, 1).reshape(n * g, -1)
    # A prompt drawn twice makes two groups, which do not meet in the group mode.
    owners = [str(i) for i in range(n)] if normaliser.mode == "group" else list(prompts)
    normalised = normaliser(rows, owners * g)
    members_first = normalised.view(g, n, -1).transpose(0, 1)
    clipped = members_first.clamp(-clip, clip) if clip > 0 else members_first
    if scored is None:
        return clipped.expand(n, g, steps).contiguous().to(rewards)
    result = torch.zeros_like(rewards)
    result[..., list(scored)] = clipped.to(rewards)
    return result


def decoupled_advantages(
    rewards: Mapping[str, Tensor],
    weights: Mapping[str, float],
    prompts: Sequence[str],
    normaliser: Normaliser,
    *,
    gamma: float,
    clip: float,
    sparse: bool,
    scored: Sequence[int] | None = None,
    over_batch: bool = False,
) -> Tensor:
    """Clipped sum of the weighted advantages of each part of a weighted sum, normalised by itself.

    Args:
        rewards: step rewards ``[N, G, T]`` by part; each has buffers of its own.
        scored: as in :func:`advantages`.
        over_batch: normalise the sum over all images of each step before it is clipped, so that its size does not
            depend on the number of rewards: (A - mean) / (std + 1e-4) with the unbiased std (GDPO, arXiv 2601.05242;
            epsilon of TRL's ``normalize_then_sum``).
    """
    total: Tensor | None = None
    for name, weight in weights.items():
        owners = [f"{name}: {prompt}" for prompt in prompts]
        own = weight * advantages(rewards[name], owners, normaliser, gamma=gamma, clip=0, sparse=sparse, scored=scored)
        total = own if total is None else total + own
    assert total is not None
    if over_batch:
        # One image alone differs from nothing: the unbiased std of one number is NaN.
        divisor = total.std((0, 1)) + 1e-4 if total.shape[:2].numel() > 1 else 1.0
        total = (total - total.mean((0, 1))) / divisor
    return total.clamp(-clip, clip) if clip > 0 else total
