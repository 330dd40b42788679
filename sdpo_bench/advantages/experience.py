"""What goes into an epoch's updates and what is kept of them: trajectories with their signals, and the log."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sdpo_bench.rollout.sampling import Noise, Trajectories


@dataclass(frozen=True)
class Experience:
    """One epoch's trajectories with their learning signals; tensors as in :class:`~sdpo_bench.api.Minibatch`.

    ``rewards [N, G, T]``, ``final_rewards [N, G]``, ``advantages``, ``ref_log_probs`` and ``old_values`` ``[N, G, T]``
    or ``None``.
    """

    trajectories: Trajectories
    rewards: Tensor
    final_rewards: Tensor
    advantages: Tensor | None = None
    ref_log_probs: Tensor | None = None
    old_values: Tensor | None = None
    ref_samples: Tensor | None = None
    """``[N, G, C, h, w]`` final latents of the base model from the same noise, where the method reads them."""
    names: tuple[int, ...] = ()
    """Global number of each group that is here; it names the noise that updates draw."""
    fresh: Noise | None = None
    """Where that noise comes from."""
    rows: Tensor | None = None
    """int64: row of each group of the epoch, -1 where another process has it; ``None``: all are here, in order."""


def take(values: Tensor, groups: Tensor, steps: Tensor) -> Tensor:
    """``values [N, G, T]`` at groups ``[b]`` and steps ``[b, K]`` -> ``[b, G, K]``."""
    picked = values.to(groups.device)[groups]
    return picked.gather(-1, steps[:, None].expand(-1, picked.shape[1], -1))


OWN_KEYS = frozenset(
    {
        "epoch",
        "groups",
        "bill",
        "loss",
        "reward_mean",
        "reward_std",
        "reward_by_query",
        "kl_to_base",
        "pictures",
        "grad_norm",
        "gradient_share_by_step",
        "ratio_mean",
        "approx_kl",
        "skipped_steps",
        "loss_scale",
    }
)
"""Keys of a line of ``train.jsonl`` that no metric of a method may take."""


@dataclass
class UpdateLog:
    """What happened in the updates of one epoch; detached, flat in memory."""

    num_steps: int
    sums: dict[str, tuple[Tensor, int]] = field(default_factory=dict)
    grad_norms: list[float] = field(default_factory=list)
    grad_square: Tensor = field(init=False)
    zero_gap: float = 0.0
    rewards: list[Tensor] = field(default_factory=list)
    """Rewards asked for during the updates (methods that follow the reward's gradient)."""
    skipped_steps: int = 0
    """Optimiser steps skipped because fp16 gradients overflowed; the same on all processes, as is ``loss_scale``."""
    loss_scale: float | None = None
    """Loss scale after the last step; ``None`` without loss scaling."""

    def __post_init__(self) -> None:
        self.grad_square = torch.zeros(self.num_steps, dtype=torch.float64)

    def add(self, name: str, value: Tensor, weight: int) -> None:
        """Add a mean over ``weight`` groups, so that micro-batches of unequal size do not tilt the average."""
        total, count = self.sums.get(name, (torch.zeros((), dtype=torch.float64), 0))
        number = torch.as_tensor(value, dtype=torch.float64).detach().cpu()  # plugins also log plain numbers
        self.sums[name] = (total + number * weight, count + weight)

    def absorb(self, other: "UpdateLog") -> None:
        """Add what another process did in the same optimiser steps."""
        for name, (value, count) in other.sums.items():
            total, before = self.sums.get(name, (torch.zeros((), dtype=torch.float64), 0))
            self.sums[name] = (total + value, before + count)
        self.grad_square = self.grad_square + other.grad_square
        self.zero_gap = max(self.zero_gap, other.zero_gap)
        self.rewards = self.rewards + other.rewards

    def summary(self) -> dict[str, float | list[float]]:
        """Means over groups, the share of the squared output gradient by denoising step, and the loss scaling if any.

        Gradient numbers are unscaled and leave skipped steps out.
        """
        means: dict[str, float | list[float]] = {
            name: float(value) / max(1, count) for name, (value, count) in self.sums.items()
        }
        total = float(self.grad_square.sum())
        shares = (self.grad_square / total).tolist() if total > 0 else [0.0] * self.num_steps
        scaling = (
            {}
            if self.loss_scale is None
            else {
                "skipped_steps": self.skipped_steps,
                "loss_scale": self.loss_scale,
            }
        )
        return (
            means
            | scaling
            | {
                "grad_norm": math.fsum(self.grad_norms) / max(1, len(self.grad_norms)),
                "ratio_at_zero_update": self.zero_gap,
                "gradient_share_by_step": [round(share, 6) for share in shares],
            }
        )
