"""The evaluation sampler in words, as every row of scores carries it. No torch: the plan of a sweep compares it too."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from sdpo_bench.settings import EvaluationSettings


def sampler_id(settings: EvaluationSettings) -> str:
    """What the evaluation sampler is, in words; rows with different samplers never share a table."""
    steps = FAMILIES[settings.sampler](settings)
    return f"{steps} guidance={settings.guidance_scale:g} {settings.image} bank={settings.noise_bank}"


def recorded_sampler(evaluation: Mapping[str, Any]) -> str:
    """:func:`sampler_id` of the evaluation settings in a run's record; empty where they cannot be read."""
    names = {field.name for field in fields(EvaluationSettings)}
    try:
        return sampler_id(EvaluationSettings(**{key: value for key, value in evaluation.items() if key in names}))
    except (KeyError, TypeError, ValueError):  # a damaged record
        return ""


def _ddim(settings: EvaluationSettings) -> str:
    return f"ddim {settings.spacing} eta={settings.eta:g}"


def _lcm(settings: EvaluationSettings) -> str:
    return "lcm"


def _flow(settings: EvaluationSettings) -> str:
    rule = "ode" if settings.eta == 0 else f"cps eta={settings.eta:g}"
    given = f" sigmas={','.join(f'{sigma:g}' for sigma in settings.sigmas)}" if settings.sigmas else ""
    return f"flow {rule} {settings.spacing}{given}"


FAMILIES: Mapping[str, Callable[[EvaluationSettings], str]] = {"ddim": _ddim, "lcm": _lcm, "flow": _flow}
"""By ``eval.sampler``: the settings that the family has."""
