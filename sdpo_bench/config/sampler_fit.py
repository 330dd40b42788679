"""Whether the samplers of a run fit its model, its method and each other, from files and settings alone.

A flow-matching model has velocities and sigmas, the others have noise levels; a schedule of the one kind means nothing
on the other. The scheduler file of the pipeline says which kind a model is, before anything is loaded. No torch here.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from sdpo_bench.api import COMPLETED_MODES, Method
from sdpo_bench.errors import CannotTrain, SdpoBenchError, UsageError
from sdpo_bench.models.base_model import flow_family, local_folder
from sdpo_bench.models.families.base import FLOW_SCHEDULER
from sdpo_bench.models.known_models import KNOWN
from sdpo_bench.models.pipeline_files import PipelineFiles, published
from sdpo_bench.plugins.registry import plugins
from sdpo_bench.rollout.flow_scheduler import check_options, check_sampler, check_sigmas, is_flow
from sdpo_bench.rollout.sde_steps import changes_by_epoch, random_steps
from sdpo_bench.scoring.variety import PREFIX
from sdpo_bench.settings import FLOW_SETTINGS, EvaluationSettings, ModelSettings, RunConfig, ScheduleSettings
from sdpo_bench.system.json_toml import parse_json

NOISE_LEVEL = 0.7
"""Default ``schedule.eta`` of flow models: Flow-GRPO's and MixGRPO's noise level."""

REMEMBERING = ("per-step-prompt", "per-prompt")
"""Normalisation modes that compare an epoch with earlier ones, column by column of the steps."""

STEPS = 10
"""Default ``schedule.steps`` of flow models: Flow-GRPO's in training."""


def needs_log_prob(method: Method | type[Method]) -> bool:
    """Whether the method learns from log-probabilities of steps (not from noised samples, samples, the reward's own
    gradient, nor nothing)."""
    return method.signal in ("advantage", "preference") and method.granularity in ("step", "trajectory")


def scheduler_file(settings: ModelSettings) -> dict[str, Any]:
    """The scheduler settings of a model's pipeline; empty where its files are not on this machine, or damaged.

    A damaged file is reported when the model is loaded.
    """
    if settings.name in KNOWN and (files := published(settings.name)):
        return dict(files.configs.get("scheduler", {}))
    return _read(settings, "scheduler/scheduler_config.json")


def _read(settings: ModelSettings, path: str) -> dict[str, Any]:
    folder = local_folder(settings)
    try:
        return dict(parse_json((folder / path).read_text(encoding="utf-8"))) if folder else {}
    except (OSError, ValueError, TypeError):
        return {}


def flow_defaults(settings: ModelSettings) -> dict[str, Any]:
    """Settings that a flow-matching model asks for by its files; empty for any other model.

    Training is stochastic (CPS), evaluation is the ODE, as such models are used. A scheduler that is stochastic itself
    (``stochastic_sampling``: fresh noise on every prediction) is CPS at eta 1 in both.
    """
    scheduler = scheduler_file(settings)
    if not is_flow(scheduler):
        return {}
    fresh = bool(scheduler.get("stochastic_sampling"))
    defaults = {"schedule.sampler": "flow", "schedule.steps": STEPS, "schedule.eta": 1.0 if fresh else NOISE_LEVEL}
    defaults |= {"eval.sampler": "flow", "eval.eta": 1.0 if fresh else 0.0}
    if str(_read(settings, "model_index.json").get("_class_name", "")).startswith("StableDiffusion3"):
        defaults |= {"schedule.spacing": "linspace", "eval.spacing": "linspace"}
    if scheduler.get("shift_terminal"):
        defaults["eval.steps"] = (2, 4, 8, 16, 50)
    return defaults


def planning_scheduler(files: PipelineFiles | None, sampler: str) -> dict[str, Any]:
    """Scheduler settings that are enough to lint a schedule before the model is loaded.

    Which steps are trained does not depend on the number of image tokens, which only the loaded model tells.
    """
    scheduler = dict(files.configs.get("scheduler", {})) if files else {}
    if sampler != "flow":
        return scheduler
    return {"_class_name": FLOW_SCHEDULER, "image_seq_len": scheduler.get("base_image_seq_len", 256)} | scheduler


def check_samplers(config: RunConfig, method: Method, sources: Mapping[str, str]) -> None:
    """Samplers of training and evaluation, and settings that only flow models have.

    Raises:
        UsageError: names the setting to change and a value that works.
    """
    scheduler = scheduler_file(config.model)
    if scheduler:
        if family := flow_family(config.model):
            family.check_scheduler(str(scheduler.get("_class_name", "")))
        check_sampler(scheduler, config.schedule.sampler, "schedule.sampler")
        check_sampler(scheduler, config.eval.sampler, "eval.sampler")
    _check_training(config.schedule, config.method.name, method, sources)
    if method.signal != "gradient" and method.reward_mode in COMPLETED_MODES:
        _check_completions(config, method)
    check_evaluation(config.eval)
    if scheduler.get("shift_terminal"):
        _refuse_one_step(config)


def _check_training(schedule: ScheduleSettings, name: str, method: Method, sources: Mapping[str, str]) -> None:
    if schedule.sampler != "flow":
        plain = ScheduleSettings()
        idle = [f"schedule.{key}" for key in FLOW_SETTINGS if getattr(schedule, key) != getattr(plain, key)]
        if idle:
            raise UsageError(
                f"{', '.join(idle)}: only flow-matching models have it, and schedule.sampler = {schedule.sampler}. "
                "Leave it out, or use a flow-matching --model."
            )
        if needs_log_prob(method) and schedule.steps == 1 and _scores_original(method):
            _refuse_unseen_noise(name, method)
        return
    check_options(schedule)
    check_sigmas(schedule.sigmas, (schedule.steps,), "schedule.sigmas")
    if needs_log_prob(method):
        _refuse_no_likelihood(schedule, name)
    random_steps(schedule.sde_steps, schedule.steps, seed=0, epoch=0)  # refuses what is no rule, or too long
    if schedule.sde == "ode":
        idle = [key for key in ("schedule.eta", "schedule.sde_steps") if sources.get(key) == "you"]
        if idle:
            raise UsageError(
                f"{', '.join(idle)} would have no effect: schedule.sde = ode draws no noise. Leave it out."
            )
    if method.needs_drift and schedule.cps_log_prob == "official":
        raise UsageError(
            f"{name} compares the means of steps in units of their noise, and schedule.cps_log_prob = official has no "
            "such units. Use --set schedule.cps_log_prob=gaussian."
        )


def _refuse_no_likelihood(schedule: ScheduleSettings, name: str) -> None:
    """On a flow model, a method that learns from log-probabilities needs a step that is random, and the last one never
    is."""
    if schedule.sde == "ode" or schedule.eta == 0:
        cause = "schedule.sde = ode" if schedule.sde == "ode" else "schedule.eta = 0"
        problem, way_on = f"{cause} draws no noise", "--set schedule.sde=cps, or schedule.eta above 0"
    elif schedule.steps == 1:
        problem, way_on = "one denoising step is the last one, which is never random", "--set schedule.steps=2 or more"
    else:
        return
    raise CannotTrain(
        f"{name} learns from log-probabilities, and {problem}. Use {way_on}, or a method that needs none: "
        f"{', '.join(_methods_without_likelihood()) or '(none installed)'}.",
        problem,
    )


def _scores_original(method: Method) -> bool:
    """Whether the final reward is that of the last step's predicted original, which is made before the step's draw."""
    return method.final_image == "predicted" or method.reward_mode in ("predicted", "full")


def _refuse_unseen_noise(name: str, method: Method) -> None:
    """At one step a method that learns from log-probabilities needs a reward of the sample: the step draws it from the
    predicted original, so a reward of the original says nothing about the draw."""
    problem = "the noise of one denoising step does not reach the scored picture, that step's predicted original"
    if method.final_image == "sample":
        way_on = "--set method.reward=sparse, which scores the sample"
    else:
        way_on = f"a method that scores the sample ({', '.join(_methods_that(_scores_sample)) or 'none installed'})"
    raise CannotTrain(
        f"{name} learns from log-probabilities, and with schedule.steps = 1 {problem}. Use --set schedule.steps=2 or "
        f"more, {way_on}, or a method that needs no log-probabilities: "
        f"{', '.join(_methods_without_likelihood()) or '(none installed)'}.",
        problem,
    )


def _scores_sample(method: type[Method]) -> bool:
    return needs_log_prob(method) and method.final_image == "sample"


def _check_completions(config: RunConfig, method: Method) -> None:
    """Rewards of completions need a sampler that can go on without noise, a random step to tell apart from it, and the
    same steps in every epoch where the normalisation remembers earlier ones."""
    schedule, name = config.schedule, config.method.name
    own = f"{name}'s {method.reward_mode} rewards"
    if schedule.sampler == "lcm":
        raise UsageError(
            f"{own} complete states without noise, and the sampler lcm throws fresh noise at every step. "
            "Use --set method.reward=predicted, full or sparse."
        )
    if schedule.eta == 0 or schedule.sde == "ode":
        raise UsageError(f"{own} say what the noise of a step gained, and this schedule draws none. Use eta above 0.")
    if method.reward_mode == "branch" and method.members == 1:
        raise UsageError(f"{own} compare the members of a group, and {name} samples one. Use completion.")
    if changes_by_epoch(schedule.sde_steps) and config.advantage and config.advantage.normalisation in REMEMBERING:
        raise UsageError(
            f"{own} exist for the random steps alone, schedule.sde_steps = {schedule.sde_steps} makes other steps "
            f"random in other epochs, and advantage.normalisation = {config.advantage.normalisation} would compare "
            "them with each other. Use --set advantage.normalisation=per-step, group or batch, or "
            "schedule.sde_steps=all or first:K."
        )


def _methods_without_likelihood() -> list[str]:
    """Names of the methods that train without log-probabilities."""
    return _methods_that(lambda method: method.signal != "none" and not needs_log_prob(method))


def _methods_that(fit: Callable[[type[Method]], bool]) -> list[str]:
    """Names of the installed methods that ``fit``."""
    names = []
    for plugin in plugins("methods").values():
        with suppress(SdpoBenchError):  # what cannot be loaded is no advice
            if fit(plugin.load()):
                names.append(plugin.name)
    return sorted(names)


def check_evaluation(settings: EvaluationSettings) -> None:
    """Options of the evaluation sampler that it does not have, and a variety of single pictures.

    Raises:
        UsageError: names the setting and what works.
    """
    if settings.images_per_prompt < 2 and (compared := [name for name in settings.rewards if name.startswith(PREFIX)]):
        raise UsageError(
            f"eval.rewards: {compared[0]} compares pictures of one prompt, and eval.images_per_prompt is 1. Use "
            "--set eval.images_per_prompt=2 or more."
        )
    if settings.sampler == "flow":
        check_options(settings, "eval.")
        check_sigmas(settings.sigmas, settings.steps, "eval.sigmas")
    elif settings.sigmas:
        raise UsageError(
            f"eval.sigmas: only flow-matching models have them, and eval.sampler = {settings.sampler}. Leave it out."
        )


def _refuse_one_step(config: RunConfig) -> None:
    for key, steps in (("schedule.steps", (config.schedule.steps,)), ("eval.steps", config.eval.steps)):
        if 1 in steps:
            raise UsageError(
                f"{key} has 1 step: the model's scheduler stretches its sigmas from 1 to shift_terminal, which takes "
                f"two. Use --set {key}=2 or more."
            )
