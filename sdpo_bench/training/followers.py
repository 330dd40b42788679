"""Adapters that follow the one that learns: the policy that samples, and the average that a run delivers.

What is evaluated and exported of a run with ``ema.decay`` is the average; what samples its training images is the
method's old policy, or the adapter that learns where it keeps none.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from sdpo_bench.api import Method
from sdpo_bench.models.policy import Policy
from sdpo_bench.rollout.trailing_weights import TrailingWeights, average_keep
from sdpo_bench.settings import EmaSettings

OLD, EMA = PREFIXES = ("old/", "ema/")


class Followers:
    """The old policy and the moving average of a training, where there are any.

    Args:
        settings: of the moving average; None: none is kept.
    """

    def __init__(self, policy: Policy, method: Method, settings: EmaSettings | None):
        self.policy, self.method, self.settings = policy, method, settings
        lora = policy.lora_parameters()
        self.old = TrailingWeights.of(lora) if method.keeps_old else None
        """Adapter of the policy that samples, where it is not the one that learns."""
        self.ema = TrailingWeights.of(lora) if settings else None
        """Average of the adapter's weights over the updates, where a run asks for it."""
        self.averaged = 0
        """Updates that the average has followed."""

    def named(self) -> dict[str, Tensor]:
        """All weights, by name (prefixes :data:`PREFIXES`)."""
        found: dict[str, Tensor] = {}
        for prefix, follower in ((OLD, self.old), (EMA, self.ema)):
            if follower is not None:
                found |= {prefix + name: value for name, value in follower.weights.items()}
        return found

    def after_update(self) -> None:
        """The average follows each update. Skipped steps change nothing, so they do not count."""
        if self.ema is None or self.settings is None:
            return
        self.averaged += 1
        keep = average_keep(self.settings.decay, self.averaged, warmup=self.settings.warmup)
        self.ema.follow(self.policy.lora_parameters(), keep)

    def after_epoch(self, optimiser_steps: int) -> None:
        """The policy that samples comes nearer to the one that learns."""
        if self.old is not None:
            self.old.follow(self.policy.lora_parameters(), self.method.old_decay(optimiser_steps))

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Inside this context the policy is the one that samples."""
        with self.policy.using(self.old.weights) if self.old else nullcontext():
            yield

    @contextmanager
    def result(self) -> Iterator[None]:
        """Inside this context the policy is the one that a run delivers: its moving average where it keeps one."""
        with self.policy.using(self.ema.weights) if self.ema else nullcontext():
            yield

    @torch.no_grad()
    def deliver(self) -> None:
        """After the training: give the policy the weights that the run delivers."""
        if self.ema is not None:
            for name, parameter in self.policy.lora_parameters().items():
                parameter.copy_(self.ema.weights[name])
