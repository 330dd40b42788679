"""What a pipeline's scheduler file says about flow matching, and which options a sampler of such a model has.

No torch here: files and settings are checked before anything is loaded.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from sdpo_bench.errors import UsageError
from sdpo_bench.models.families.base import FLOW_SCHEDULER


def is_flow(scheduler_config: Mapping[str, Any]) -> bool:
    """Whether the file is of a flow-matching model, whichever scheduler class it names."""
    return "FlowMatch" in str(scheduler_config.get("_class_name", "")) or bool(scheduler_config.get("use_flow_sigmas"))


def check_sampler(scheduler_config: Mapping[str, Any], sampler: str, key: str = "sampler") -> None:
    """Refuse a flow model under a sampler for noise levels, the reverse, flow schedulers that give no sigmas, and EDM.

    A model of EDM (arXiv 2206.00364) takes scaled latents and ln(sigma) / 4 as its time. Playground 2.5 is one in a
    pipeline of SDXL; with betas it would be asked at other times, without an error.

    Args:
        key: name of the setting, e.g. ``schedule.sampler``.

    Raises:
        UsageError: in one line, with the value that works.
    """
    name = scheduler_config.get("_class_name", "unknown class")
    flow = is_flow(scheduler_config)
    if flow and sampler != "flow":
        raise UsageError(
            f"{key} = {sampler} needs noise levels (betas), and this is a flow-matching model (scheduler {name}). "
            f"Use --set {key}=flow."
        )
    if sampler != "flow":
        if "sigma_data" in scheduler_config:
            raise UsageError(
                f"the model's scheduler is {name}, which scales latents, outputs and time by EDM's rule (sigma_data), "
                "and no sampler here does. Use another --model."
            )
        return
    if not flow:
        raise UsageError(
            f"{key} = flow needs a flow-matching model, and this model's scheduler is {name}. Use --set {key}=ddim "
            "(or lcm for a consistency model), or another --model."
        )
    if problem := _problem(scheduler_config):
        raise UsageError(
            f"the model's scheduler file {problem}. Save the pipeline with the scheduler that its authors published "
            f"({FLOW_SCHEDULER}), or use another --model."
        )


def _problem(config: Mapping[str, Any]) -> str:
    """Why no sigmas can be computed from the file; empty where they can."""
    if config.get("_class_name") != FLOW_SCHEDULER:
        return f"names {config.get('_class_name')}, whose sigmas are not those of {FLOW_SCHEDULER}"
    if config.get("invert_sigmas"):
        return "has invert_sigmas = true: its sigmas rise from 0 to 1, and sampling here goes from 1 to 0"
    shift = config.get("shift", 1.0)
    if not config.get("use_dynamic_shifting") and not (isinstance(shift, int | float) and shift > 0):
        return f"has shift = {shift}, and a shift is above 0"
    smallest, largest = _image_tokens(config)
    if config.get("use_dynamic_shifting") and smallest == largest:
        return (
            f"has base_image_seq_len = max_image_seq_len = {largest}, and the shift by image size is a line between "
            "two different numbers of tokens"
        )
    return ""


def _image_tokens(config: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of image tokens to which ``base_shift`` and ``max_shift`` belong, by diffusers' defaults."""
    return config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)


def image_shift(config: Mapping[str, Any]) -> float | None:
    """``mu`` of a scheduler that shifts by image size, ``None`` for one that does not.

    Linear in the number of image tokens, as the pipelines of diffusers compute it (``calculate_shift``).

    Raises:
        UsageError: the number of image tokens is unknown.
    """
    if not config.get("use_dynamic_shifting"):
        return None
    tokens = config.get("image_seq_len")
    if tokens is None:
        raise UsageError(
            "this model's scheduler shifts its sigmas by the size of the image (use_dynamic_shifting), and the number "
            "of image tokens (image_seq_len) of this model family is unknown. Use a model of a family "
            "that is known (sdpo-bench list models)."
        )
    smallest, largest = _image_tokens(config)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (high - low) / (largest - smallest)
    return float(tokens * slope + (low - slope * smallest))


def check_options(options: Any, prefix: str = "") -> None:
    """Options of a flow sampler that it does not have, or that would have no effect under its rule.

    Args:
        options: ``StepOptions``, or the settings of a schedule or an evaluation, which have the same names.
        prefix: of the settings' names, e.g. ``eval.``.

    Raises:
        UsageError: names the option and what works.
    """
    sde = getattr(options, "sde", "cps")
    if options.eta < 0 or (sde == "cps" and options.eta > 1):
        raise UsageError(
            f"{prefix}eta = {options.eta:g}: the noise of a flow model is 0 or more, and at most 1 under sde = cps, "
            "where 1 replaces all noise."
        )
    if options.spacing == "leading":
        raise UsageError(f"{prefix}spacing = leading: the sampler 'flow' has trailing and linspace.")
    if getattr(options, "cps_log_prob", "gaussian") == "official" and sde != "cps":
        raise UsageError(f"cps_log_prob = official belongs to sde = cps, and sde = {sde}. Leave it out.")
    for name, plain in (("prev_timestep", "grid"), ("std_floor", 0)):
        value = getattr(options, name, plain)
        if value != plain:
            raise UsageError(f"the sampler 'flow' has no {name} (got {value}). Leave {prefix}{name} out.")


def check_sigmas(sigmas: Sequence[float], steps: Sequence[int], key: str) -> None:
    """A list of sigmas that descends and has the length of (one of) the numbers of steps; an empty one is none.

    Raises:
        UsageError: it does not.
    """
    if not sigmas:
        return
    if len(sigmas) not in steps:
        counts = ", ".join(map(str, steps))
        raise UsageError(
            f"{key} has {len(sigmas)} values, and the number of denoising steps is {counts}: give one for each step."
        )
    if any(after >= before for before, after in pairwise(sigmas)):
        raise UsageError(f"{key} = {', '.join(f'{s:g}' for s in sigmas)}: they must descend.")
