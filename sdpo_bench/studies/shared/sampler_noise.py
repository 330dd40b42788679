"""How much of a step's noise a sampler keeps: what differs between two models that are sampled in different ways.

A step of stochastic DDIM draws a part of its noise afresh, a step of Flow-CPS at eta 1 all of it. The more is fresh,
the less alike are the predicted originals of neighbouring steps, whatever the model.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from sdpo_bench.settings import ScheduleSettings

if TYPE_CHECKING:
    from sdpo_bench.rollout.schedule import Schedule


def sampler_words(schedule: ScheduleSettings) -> str:
    """Sampler, rule of its random steps where it has several, and eta: ``flow, sde cps, eta 1``."""
    rule = f", sde {schedule.sde}" if schedule.sampler == "flow" else ""
    return f"{schedule.sampler}{rule}, eta {schedule.eta:g}"


def kept_noise(schedule: "Schedule") -> np.ndarray:
    """Share of its noise that each step but the last one keeps from the step before, ``[T - 1]`` in [0, 1].

    A step of standard deviation ``std`` lands at a noise level ``n'``, of which ``sqrt(n'^2 - std^2)`` is the old noise
    (DDIM eq. 12; Flow-CPS, arXiv 2509.05952). The last step is left out: on a flow model it draws no noise.
    """
    import torch

    index = torch.arange(schedule.num_steps)
    noise = torch.ones(len(index), 1, 1, 1)
    levels = schedule.add_noise(torch.zeros_like(noise), noise, index).flatten().double()
    fresh = schedule.std(torch.float64)[:-1] / levels[1:]
    return np.asarray((1 - fresh**2).clamp(min=0).sqrt().numpy())


def matched_eta(kept: np.ndarray) -> float:
    """Eta at which Flow-CPS keeps in every step the mean of these shares, to four digits.

    A step of Flow-CPS keeps ``cos(eta pi / 2)``.
    """
    return round(2 / math.pi * math.acos(float(kept.mean())), 4)
