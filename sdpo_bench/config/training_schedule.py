"""The steps of the training trajectories, as settings and method ask for them; those of the evaluation are others.

A dry run and a study ask for them without a trainer.
"""

from typing import Any

from sdpo_bench.api import Method
from sdpo_bench.rollout.schedule import Schedule, lint, make_schedule
from sdpo_bench.settings import RunConfig


def training_schedule(config: RunConfig, scheduler: dict[str, Any], method: Method) -> Schedule:
    """The schedule of the training trajectories, checked for finite log-probabilities where the method needs them.

    Raises:
        UsageError: from the lint.
    """
    s = config.schedule
    schedule = make_schedule(
        scheduler,
        s.steps,
        sampler=s.sampler,
        eta=s.eta,
        spacing=s.spacing,
        prev_timestep=s.prev_timestep,
        std_floor=s.std_floor,
    )
    lint(schedule, needs_log_prob=needs_log_prob(method))
    return schedule


def needs_log_prob(method: Method) -> bool:
    """Whether the method learns from log-probabilities of steps (not from the reward's own gradient, nor nothing)."""
    return method.signal in ("advantage", "preference")
