"""The steps of the training trajectories, as settings and method ask for them; those of the evaluation are others.

A dry run and a study ask for them without a trainer.
"""

from typing import Any

import torch
from torch import Tensor

from sdpo_bench.api import Method
from sdpo_bench.config.sampler_fit import needs_log_prob
from sdpo_bench.rollout.schedule import Schedule, lint, make_schedule, step_weights
from sdpo_bench.rollout.sde_steps import random_steps, windows
from sdpo_bench.settings import RunConfig, ScheduleSettings


def training_schedule(config: RunConfig, scheduler: dict[str, Any], method: Method, epoch: int = 0) -> Schedule:
    """The schedule of an epoch's trajectories, checked for finite log-probabilities where the method needs them.

    It is the same in every epoch, unless a flow model's window of random steps moves.

    Raises:
        UsageError: from the lint.
    """
    s = config.schedule
    options = schedule_options(s, seed=config.seed, epoch=epoch)
    schedule = make_schedule(scheduler, s.steps, sampler=s.sampler, **options)
    lint(schedule, needs_log_prob=needs_log_prob(method))
    return schedule


def schedule_options(settings: ScheduleSettings, *, seed: int = 0, epoch: int = 0) -> dict[str, Any]:
    """The settings of a schedule as options of ``make_schedule``."""
    names = ["eta", "spacing", "prev_timestep", "std_floor"]
    if settings.sampler != "flow":
        return {name: getattr(settings, name) for name in names}
    options = {name: getattr(settings, name) for name in (*names, "sde", "cps_log_prob", "sigmas")}
    now = random_steps(settings.sde_steps, settings.steps, seed=seed, epoch=epoch)
    places = windows(settings.sde_steps, settings.steps)
    return options | {"random_steps": now, "ever_random": range(places[0].start, places[-1].stop)}


def trained_weights(schedule: Schedule, method: Method, rule: str) -> Tensor:
    """Weight of each step's log-ratio ``[T]``; 1 everywhere for methods without likelihood, which train at the noise
    level of every step, deterministic ones included."""
    if method.granularity in ("noised", "sample"):
        return torch.ones(schedule.num_steps)
    return step_weights(schedule, rule)
