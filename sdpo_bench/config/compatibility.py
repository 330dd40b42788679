"""Whether a method, a reward and the settings of a run fit together; each refusal names a value that works.

Types and ranges of single settings are checked where they are read (``config``); this is what needs several of them.
"""

from collections.abc import Mapping

from sdpo_bench.api import Method
from sdpo_bench.config import batch_geometry
from sdpo_bench.config.sampler_fit import REMEMBERING
from sdpo_bench.errors import UsageError
from sdpo_bench.plugins.registry import declaring, find
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.scoring.reward_expression import Choice, choose
from sdpo_bench.settings import AdvantageSettings, EvaluationSettings, RunConfig


def check_fit(config: RunConfig, method: Method, sources: Mapping[str, str]) -> None:
    """Settings that are each valid but do not fit together: batch geometry, update order, unused sections.

    Raises:
        UsageError: names the setting to change and a value that works.
    """
    unused = [key for key, source in sources.items() if source == "you" and key.startswith(idle_settings(method))]
    if unused:
        raise UsageError(
            f"{config.method.name} does not use {', '.join(unused)}: it would have no effect. Leave it out."
        )
    if config.advantage and config.advantage.normalisation == "group" and method.members == 1:
        raise UsageError(
            f"advantage.normalisation = group compares the members of a group, and {config.method.name} samples one. "
            "Use per-step-prompt, per-prompt, per-step, batch or none."
        )
    if config.advantage:
        _check_advantages(config.advantage, config.reward.name)
        _check_buffer(config.advantage)
    if method.granularity in ("trajectory", "sample") and config.update.order != "accumulated":
        raise UsageError(
            f"{config.method.name}'s loss needs whole trajectories or final samples, so the update order can "
            "only be 'accumulated'. Use --set update.order=accumulated."
        )
    if not method.guided_loss and config.model.guidance_scale <= 1:
        raise UsageError(
            f"{config.method.name}'s loss is to leave out guidance, and model.guidance_scale = "
            f"{config.model.guidance_scale:g} has none: it would have no effect. Leave the setting out."
        )
    batch_geometry.check(config, method.members)
    for name in (config.sample.prompts, config.eval.train, config.eval.validation, config.eval.unseen):
        if name:
            load_prompts(name)  # refuses what is no prompt set
    _check_choice(config, sources)


def _check_buffer(settings: AdvantageSettings) -> None:
    """The size of a buffer of samples, under a normalisation that keeps none."""
    usual = AdvantageSettings()
    sizes = {"buffer_size": settings.buffer_size, "min_count": settings.min_count}
    given = [f"advantage.{name}" for name, value in sizes.items() if value != getattr(usual, name)]
    if given and settings.normalisation not in REMEMBERING:
        raise UsageError(
            f"advantage.normalisation = {settings.normalisation} keeps no earlier samples, so {' and '.join(given)} "
            f"would have no effect. Leave it out, or use --set advantage.normalisation={' or '.join(REMEMBERING)}."
        )


def _check_advantages(settings: AdvantageSettings, reward: str) -> None:
    """Options of the advantages that would have no effect."""
    if settings.normalisation in REMEMBERING and settings.buffer_size < settings.min_count:
        raise UsageError(
            f"advantage.buffer_size = {settings.buffer_size} is below advantage.min_count = {settings.min_count}: no "
            f"prompt would ever have its own statistics, and advantage.normalisation = {settings.normalisation} would "
            f"compare with the whole batch for ever. Use --set advantage.buffer_size={settings.min_count} or more, or "
            f"--set advantage.min_count={settings.buffer_size} or less."
        )
    if settings.std == "batch" and settings.normalisation != "group":
        raise UsageError(
            f"advantage.std = batch belongs to advantage.normalisation = group, got {settings.normalisation}. "
            "Leave it out, or use --set advantage.normalisation=group."
        )
    if settings.rewards == "summed":
        return
    given = f"advantage.rewards = {settings.rewards}"
    if len(choose(reward).parts) == 1:
        raise UsageError(
            f"{given} normalises each part of a weighted sum, and '{reward}' is one reward. "
            "Leave it out, or use a sum: --reward NAME+NAME."
        )
    if settings.normalisation == "none":
        raise UsageError(
            f"{given} normalises each reward by itself, and advantage.normalisation = none does not. "
            "Use --set advantage.normalisation=group."
        )


def _check_choice(config: RunConfig, sources: Mapping[str, str]) -> None:
    """Validation prompts are there, and never among those that are reported."""
    chosen = config.checkpoint
    if chosen is None:
        idle = [
            k for k, s in sources.items() if k.startswith("checkpoint.") and k != "checkpoint.choose" and s == "you"
        ]
        if idle:
            often = " How often a run is saved is --checkpoint-every." if "checkpoint.every" in idle else ""
            raise UsageError(
                f"{', '.join(idle)} would have no effect: the last checkpoint is taken. "
                f"Add --set checkpoint.choose=validation.{often}"
            )
        return
    if not chosen.prompts:
        raise UsageError(
            f"checkpoint.choose = {chosen.choose} needs prompts to choose on. Use --set checkpoint.prompts=NAME "
            "(sdpo-bench list prompts) or a text file."
        )
    refuse_reported(chosen.prompts, config.eval, "checkpoint.prompts")


def refuse_reported(name: str, settings: EvaluationSettings, key: str) -> None:
    """Prompts on which something was chosen say nothing more about it.

    Raises:
        UsageError: prompt set ``name`` shares a prompt with a split that is evaluated.
    """
    choosing_prompts = set(load_prompts(name))
    for split in ("train", "validation", "unseen"):
        reported = getattr(settings, split)
        shared = sorted(choosing_prompts & set(load_prompts(reported))) if reported else []
        if shared:
            raise UsageError(
                f"{key} = '{name}' shares {len(shared)} prompts with eval.{split} = '{reported}', e.g. '{shared[0]}': "
                "scores on prompts that made a choice must not be reported. Choose on other prompts."
            )


def idle_settings(method: type[Method] | Method) -> tuple[str, ...]:
    """Prefixes of the settings that a method has no use for."""
    idle: tuple[str, ...] = ()
    if method.signal != "advantage":
        idle += ("advantage.",)
    if method.signal == "gradient" or method.granularity in ("noised", "sample"):
        idle += ("update.step_weight",)
    if method.signal == "none":
        # Schedule, prompts and budget stay: they say with which runs it is compared.
        idle += ("update.", "checkpoint.", "ema.", "sample.images_per_epoch", "sample.draw")
    return idle


def can_learn_from(method: str, reward: str) -> bool:
    """Whether a method can use a reward at all: one that follows the reward's gradient needs one that has it."""
    needs_gradient = find("methods", method).load().signal == "gradient"
    return not needs_gradient or choose(reward).make({}).differentiable


def check_gradient(config: RunConfig, method: Method, reward: Choice) -> None:
    """A method that follows the reward's gradient needs a reward that has one.

    Raises:
        UsageError: names the rewards that declare a gradient.
    """
    if method.signal == "gradient" and not reward.make(config.reward.settings).differentiable:
        raise UsageError(
            f"{config.method.name} follows the gradient of the reward, and '{config.reward.name}' has none. "
            f"Rewards that have one: {', '.join(declaring('differentiable')) or '(none)'}. Use --reward NAME."
        )


def check_backprop_fits(config: RunConfig, method: Method) -> None:
    """A gradient through the last steps needs as many steps.

    Raises:
        UsageError: names the number of steps there are.
    """
    if method.signal != "gradient" and method.granularity != "sample":
        return
    plan, steps = method.backprop(config.schedule.steps), config.schedule.steps
    if not (plan.depth >= 1 and plan.window >= 1 and plan.depth + plan.window - 1 <= steps):
        raise UsageError(
            f"{config.method.name} differentiates {plan.depth} steps, the last of them among the last {plan.window}, "
            f"and there are {steps}. Use fewer, or a larger schedule.steps."
        )


def check_features(config: RunConfig, method: Method, reward: Choice) -> None:
    """A loss on the features of the reward's network needs a reward that exposes them.

    Raises:
        UsageError: names the rewards that do.
    """
    if method.granularity != "sample" or method.sample_features != "scorer":
        return
    if not reward.make(config.reward.settings).has_features:
        declared = declaring("has_features")
        here = " with these reward settings" if config.reward.name in declared else ""
        raise UsageError(
            f"{config.method.name} compares the features of the reward's network, and '{config.reward.name}' exposes "
            f"none{here}. Rewards that do: {', '.join(declared) or '(none)'}. "
            "Use --reward NAME, or --set method.features=latent or pixels."
        )
