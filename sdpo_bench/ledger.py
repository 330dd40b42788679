"""The ledger: what a run has cost so far, on every axis, and where it must stop.

"Samples" alone hides most of the bill: per trajectory one method asks three rewards and takes many optimiser steps
where another asks one and takes few. Every denoiser and reward call is charged here, and nothing else decides when
training ends.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from typing import Any, Literal, Protocol, get_args

from sdpo_bench.errors import UsageError

Axis = Literal["images", "denoiser_calls", "reward_calls", "optimiser_steps", "seconds"]
AXES: tuple[str, ...] = get_args(Axis)
Phase = Literal["rollout", "reward", "update", "reference", "diagnostic", "search"]


@dataclass
class Ledger:
    """Counts since the start of a run (calls count single latents or images, not batches).

    ``forward`` is denoiser evaluations by phase (sampling, completions that a reward is asked for, training forward,
    reference model, diagnostics),
    ``backward`` those that were differentiated, ``rewards`` images scored by reward name, ``cached`` images whose
    score was remembered: they cost nothing and are shown beside what was paid, ``reward_backward`` images whose score
    was differentiated. ``decoded`` images were decoded for a loss that looks at pixels and ``decoded_backward`` of them
    differentiated; what is decoded for a reward call is part of that call.
    """

    images: int = 0
    forward: dict[str, int] = field(default_factory=dict)
    backward: int = 0
    rewards: dict[str, int] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)
    reward_backward: int = 0
    decoded: int = 0
    decoded_backward: int = 0
    optimiser_steps: int = 0
    seconds: float = 0.0
    phase: Phase = "diagnostic"

    def charge_call(self, latents: int) -> None:
        """Charge one denoiser call to the present phase (the policy reports every call here)."""
        self.forward[self.phase] = self.forward.get(self.phase, 0) + latents

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Calls inside this context are charged to ``phase``."""
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def charge_reward(self, name: str, images: int, *, cached: int = 0) -> None:
        """Charge scored images; ``cached`` ones are noted and not charged."""
        self.rewards[name] = self.rewards.get(name, 0) + images
        if cached:
            self.cached[name] = self.cached.get(name, 0) + cached

    @property
    def denoiser_calls(self) -> int:
        """Forward evaluations of all phases plus backward ones."""
        return sum(self.forward.values()) + self.backward

    @property
    def reward_calls(self) -> int:
        """Images scored plus scores differentiated, as for the denoiser."""
        return sum(self.rewards.values()) + self.reward_backward

    def used(self, axis: str) -> float:
        """Amount used on one axis of :data:`AXES`."""
        return float(getattr(self, axis))

    def bill(self) -> dict[str, Any]:
        """Everything but the time, as plain data with sorted keys (identical for identical runs)."""
        counts = {k: v for k, v in asdict(self).items() if k not in ("seconds", "phase")}
        counts["forward"] = dict(sorted(self.forward.items()))
        counts["rewards"] = dict(sorted(self.rewards.items()))
        counts["cached"] = dict(sorted(self.cached.items()))
        if not self.decoded:
            del counts["decoded"], counts["decoded_backward"]
        return counts | {"denoiser_calls": self.denoiser_calls, "reward_calls": self.reward_calls}

    def absorb(self, parts: "Sequence[Ledger]", before: "Ledger") -> None:
        """Become the bill of all processes: what was counted ``before`` they parted and what each has counted since.

        Images, optimiser steps and seconds are those of the whole run already.
        """
        for name in ("forward", "rewards", "cached"):
            start: dict[str, int] = getattr(before, name)
            total: dict[str, int] = {}
            for part in parts:
                for key, count in getattr(part, name).items():
                    total[key] = total.get(key, start.get(key, 0)) + count - start.get(key, 0)
            setattr(self, name, total)
        for name in ("backward", "reward_backward", "decoded", "decoded_backward"):
            common: int = getattr(before, name)
            setattr(self, name, common + sum(getattr(part, name) - common for part in parts))

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Ledger":
        return cls(**state)


class Spent(Protocol):
    """A bill, as a limit looks at it: a ledger's or an estimate's."""

    def used(self, axis: str) -> float:
        """Amount used on one axis of :data:`AXES`."""


@dataclass(frozen=True)
class Cost:
    """What one prompt group costs in one epoch; known before it is sampled."""

    images: int
    forward: int
    backward: int
    rewards: int
    decoded: int = 0
    """Decoder calls for a loss that looks at pixels, differentiated ones counted twice."""

    def of(self, axis: str) -> float:
        if axis == "denoiser_calls":
            return self.forward + self.backward
        return {"images": self.images, "reward_calls": self.rewards}.get(axis, 0)


@dataclass(frozen=True)
class Limit:
    """Stop when ``axis`` reaches ``amount``."""

    axis: str
    amount: float

    def reached(self, ledger: Ledger) -> bool:
        return ledger.used(self.axis) >= self.amount

    def groups_left(self, bill: Spent, group: Cost, planned: int, overhead: float = 0.0) -> int:
        """How many of ``planned`` prompt groups still fit (0: stop now).

        Images, reward calls and denoiser calls are known in advance, so the last epoch is cut to whole groups that
        fit; ``overhead`` is what the epoch costs besides its groups. Optimiser steps and seconds stop inside an epoch.
        """
        each = group.of(self.axis)
        left = self.amount - bill.used(self.axis)
        if left <= 0:
            return 0
        if each == 0:
            return planned
        return max(0, min(planned, int((left - overhead) // each)))


def limit_text(amount: float, axis: str) -> str:
    """A budget as it was given, e.g. ``2,560 images`` or ``1 second``."""
    unit = axis.replace("_", " ")
    return f"{amount:,.15g} {unit.removesuffix('s') if amount == 1 else unit}"


def used_text(used: float) -> str:
    """What was used of a budget: whole numbers, and of small times three digits."""
    return f"{used:,.3g}" if used < 100 else f"{used:,.0f}"


def parse_budget(text: str) -> tuple[str, float]:
    """``"images=3000"`` -> ``("images", 3000.0)``; suffixes k and M are understood.

    Raises:
        UsageError: no ``=``, an unknown axis, or an amount that is not a positive number.
    """
    axis, _, amount = text.partition("=")
    axis = axis.strip().replace("-", "_")
    example = f"Valid: {', '.join(AXES)}. Example: --budget images=3000"
    if axis not in AXES:
        raise UsageError(f"unknown budget axis '{axis}' in '{text}'. {example}")
    zeros = {"k": 3, "M": 6}.get(amount[-1:], 0)
    try:
        # In decimals: 1.005 * 1e3 is 1004.9999999999999, whose last image no run would have.
        value = float(Decimal(amount[:-1] if zeros else amount).scaleb(zeros))
    except ArithmeticError:
        raise UsageError(
            f"'{amount}' is not an amount of {axis}: give a number, with k or M for thousands or millions. "
            f"Example: --budget {axis}=3000"
        ) from None
    if not 0 < value < float("inf"):
        raise UsageError(f"a budget is a positive number, got {axis}={amount}. {example}")
    return axis, value
