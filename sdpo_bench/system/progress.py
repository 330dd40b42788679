"""Progress reports of the engine as plain data, so that watchers need nothing of the engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Tick:
    """A moment of training.

    Attributes:
        epoch: completed epochs.
        used, limit, axis: budget used, its limit, and what is counted.
        phase: ``sampling``, ``scoring``, ``updating``, ``epoch`` (one was completed) or ``warning``.
        metrics: numbers of the last completed epoch, or the text of a warning.
    """

    epoch: int
    used: float
    limit: float
    axis: str
    phase: str
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Watcher:
    """Who is told: ``train`` gets ticks, ``evaluation`` a text with denoiser calls done and in all."""

    train: Callable[[Tick], None] = lambda tick: None
    evaluation: Callable[[str, int, int], None] = lambda text, done, total: None
