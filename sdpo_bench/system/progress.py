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
        denoiser_calls: of the training so far, forward and backward.
    """

    epoch: int
    used: float
    limit: float
    axis: str
    phase: str
    metrics: dict[str, Any]
    denoiser_calls: int = 0


@dataclass(frozen=True)
class RunPlan:
    """The work of a whole run, so that its progress can be shown on one scale.

    The unit of work is one denoiser call without gradients. Training and both evaluations count what they cost.

    Attributes:
        method: name of the method, as the evaluation reports it.
        epochs: of the training; 0 where only the clock knows (a budget of seconds).
        denoiser_calls: of the training, as ``Tick.denoiser_calls`` counts them; 0 where only the clock knows.
        training, tuned, base: work of the training and of evaluating the tuned and the base model.
    """

    method: str
    epochs: int
    denoiser_calls: int
    training: float
    tuned: float
    base: float


@dataclass(frozen=True)
class Watcher:
    """Who is told: ``train`` gets ticks, ``evaluation`` a text with denoiser calls done and in all.

    ``second_process`` is called where another process scores the base model during training, and then half of the run.
    """

    train: Callable[[Tick], None] = lambda tick: None
    evaluation: Callable[[str, int, int], None] = lambda text, done, total: None
    second_process: Callable[[], None] = lambda: None
