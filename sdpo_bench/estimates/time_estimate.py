"""What a run will cost: its bill from the settings alone, and the time from measured rates.

Images, reward calls, denoiser calls and optimiser steps are counted as the ledger will count them, epoch by epoch to
the cut last one. Where a window of random steps moves, "one epoch" is the mean over its places, and so are the
epochs of a run that has more than :data:`ONE_BY_ONE`. Time is an estimate from a short measurement (``measure_speed``).
No torch here.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any

from sdpo_bench.api import Search
from sdpo_bench.config.resolve import Resolved, build_method
from sdpo_bench.config.sampler_fit import needs_log_prob
from sdpo_bench.ledger import Cost, Limit
from sdpo_bench.models.base_model import pipeline_files
from sdpo_bench.prompts.prompt_sets import load_prompts
from sdpo_bench.rollout.group_cost import group_cost, probe_cost
from sdpo_bench.rollout.sde_steps import changes_by_epoch, random_steps, windows
from sdpo_bench.scoring.reward_expression import choose, same_reward
from sdpo_bench.settings import MOST, ModelSettings, RunConfig, ScheduleSettings

ONE_BY_ONE = 1000
"""Most epochs that are counted one by one, where a moving window of random steps gives them different costs; of more,
each is the mean over its places."""


@dataclass(frozen=True)
class Rates:
    """Seconds of one unit of work on this machine, for one base model."""

    forward: float
    """One denoiser evaluation of one latent without gradients."""
    train: float
    """One with its gradient."""
    decode: float
    """One image."""
    optimiser_step: float
    rewards: Mapping[str, float] = field(default_factory=dict)
    """One image, by :func:`single_key` of a single reward."""


@dataclass(frozen=True)
class Work:
    """Counts of one or several runs; the training bill first, then what is done outside it."""

    images: int = 0
    forward: int = 0
    backward: int = 0
    reward_calls: int = 0
    optimiser_steps: int = 0
    decoded: int = 0
    """Images decoded for rewards in training."""
    outside_forward: int = 0
    """Denoiser calls of evaluation, learning curve and choosing the checkpoint."""
    outside_images: int = 0
    seen: int = 0
    """Decoder calls for a loss that looks at pixels."""

    def __add__(self, other: "Work") -> "Work":
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Work)))

    def used(self, axis: str) -> float:
        """Amount on one axis of ``ledger.AXES`` but the time."""
        return float(getattr(self, axis))

    def times(self, n: int, divisor: int = 1) -> "Work":
        """``n / divisor`` of it, rounded down to whole counts."""
        return Work(*(getattr(self, f.name) * n // divisor for f in fields(Work)))

    @property
    def denoiser_calls(self) -> int:
        return self.forward + self.backward


def trained_steps(
    schedule: ScheduleSettings, rule: str, *, seed: int = 0, epoch: int = 0, window: range | None = None
) -> list[float]:
    """Which steps ``schedule.step_weights`` gives a weight above 0, as 1 and 0.

    Args:
        window: random steps of a flow model; None: those of the epoch.
    """
    if schedule.sampler == "flow":
        if window is None:
            window = random_steps(schedule.sde_steps, schedule.steps, seed=seed, epoch=epoch)
        chosen = window if schedule.sde != "ode" and schedule.eta > 0 else ()
        return [float(i in chosen) for i in range(schedule.steps)]
    last = 1.0
    if schedule.sampler == "lcm" and not schedule.std_floor:
        last = 0.0  # it draws nothing
    if rule == "skip-last" and schedule.steps > 1:
        last = 0.0
    return [1.0] * (schedule.steps - 1) + [last]


@lru_cache(maxsize=32)
def is_guided(model: ModelSettings) -> bool:
    """Whether a denoiser call has two branches: guidance above 1, and not as an input of it (LCM, FLUX.1 dev)."""
    if model.guidance_scale <= 1:
        return False
    files = pipeline_files(model)
    return not (files and files.family(model.name).embeds_guidance(files.configs))


def make_method(resolved: Resolved) -> Any:
    """The method of a resolved run, with its settings."""
    return build_method(resolved.config, resolved.method)


def cost_of_group(
    resolved: Resolved, epoch: int = 0, window: range | None = None, *, inner_epochs: int | None = None
) -> Cost:
    """What one prompt group of a run costs in an epoch; only a moving window of random steps tells epochs apart.

    Args:
        window: random steps of a flow model; None: those of the epoch.
        inner_epochs: passes of updates, 0 for sampling and scoring alone; None: those of the run.
    """
    config = resolved.config
    weights = trained_steps(config.schedule, config.update.step_weight, seed=config.seed, epoch=epoch, window=window)
    drawn = trained_steps(config.schedule, "official", seed=config.seed, epoch=epoch, window=window)
    return group_cost(
        make_method(resolved),
        weights,
        inner_epochs=config.update.inner_epochs if inner_epochs is None else inner_epochs,
        guided=is_guided(config.model),
        calls_per_image=len(resolved.reward.parts),
        drawing=[i for i, draws in enumerate(drawn) if draws],
    )


def costs_by_place(resolved: Resolved) -> list[Cost]:
    """:func:`cost_of_group` at each place of the window of random steps; one cost where nothing moves."""
    schedule = resolved.config.schedule
    if schedule.sampler != "flow":
        return [cost_of_group(resolved)]
    return [cost_of_group(resolved, window=window) for window in windows(schedule.sde_steps, schedule.steps)]


def cost_of_probe(resolved: Resolved, groups: int) -> int:
    """Denoiser calls of one epoch of ``groups`` groups that only measure the KL to the base model."""
    config = resolved.config
    return probe_cost(make_method(resolved), config.schedule.steps, groups, guided=is_guided(config.model))


def epoch_work(resolved: Resolved) -> dict[str, int]:
    """The bill of one whole epoch, as ``run --dry-run`` shows it: the mean over the places of a moving window."""
    config, method, costs = resolved.config, make_method(resolved), costs_by_place(resolved)
    groups = config.sample.images_per_epoch // method.members if method.signal != "none" else 0

    def mean(name: str) -> int:
        return round(groups * sum(getattr(cost, name) for cost in costs) / len(costs))

    decoder = {"decoder_calls": mean("decoded")} if costs[0].decoded else {}
    return {
        "groups": groups,
        "images": mean("images"),
        "denoiser_forward": mean("forward") + cost_of_probe(resolved, groups),
        "denoiser_backward": mean("backward"),
        "reward_calls": mean("rewards"),
        "optimiser_steps": optimiser_steps(config, method, groups),
        **decoder,
    }


def training_work(resolved: Resolved) -> Work | None:
    """The bill of a run; None where it stops on seconds, so that only the clock knows.

    Exact for a budget of images, reward calls or denoiser calls, but for a window of random steps that moves for more
    than :data:`ONE_BY_ONE` epochs: all but the last ones then count as the mean over its places. A budget of optimiser
    steps ends inside an epoch: all of its sampling counts, and of its updates and what they ask for an even share.
    """
    config, method = resolved.config, make_method(resolved)
    if method.signal == "none":
        return Work()
    limit = Limit(config.budget.axis, config.budget.amount)
    if limit.axis == "seconds":
        return None
    groups_per_epoch = config.sample.images_per_epoch // method.members
    probe = cost_of_probe(resolved, groups_per_epoch) if limit.axis == "denoiser_calls" else 0
    work, epoch = Work(), 0
    moving = config.schedule.sampler == "flow" and changes_by_epoch(config.schedule.sde_steps)
    cycle, places = _cycle(resolved, groups_per_epoch)
    epochs = int(limit.amount * places // cycle.used(limit.axis))
    if not moving or epochs > ONE_BY_ONE:
        # All epochs but the last two are alike, or stand for their mean, and there can be any number of them.
        epoch = max(0, epochs - 1)
        work = cycle.times(epoch, places)
    while groups := limit.groups_left(work, cost := cost_of_group(resolved, epoch), groups_per_epoch, probe):
        share, sampled = 1.0, cost
        if limit.axis == "optimiser_steps":
            share = min(1.0, (limit.amount - work.optimiser_steps) / optimiser_steps(config, method, groups))
            sampled = cost_of_group(resolved, epoch, inner_epochs=0)
        work += _epoch(resolved, cost, groups, share, sampled)
        epoch += moving
    return work


def _cycle(resolved: Resolved, groups: int) -> tuple[Work, int]:
    """Work of one epoch at each place of the window of random steps, and how many places there are."""
    costs = costs_by_place(resolved)
    return sum((_epoch(resolved, cost, groups) for cost in costs), Work()), len(costs)


def _epoch(resolved: Resolved, cost: Cost, groups: int, share: float = 1.0, sampled: Cost | None = None) -> Work:
    """One epoch of training, of which a ``share`` of the updates is done.

    Args:
        sampled: what a group costs before the updates, where these are not all done.
    """
    before = sampled or cost

    def shared(name: str) -> int:
        whole, rest = getattr(cost, name), getattr(before, name)
        return round(groups * (rest + (whole - rest) * share))

    calls = shared("rewards")
    return Work(
        groups * cost.images,
        shared("forward") + cost_of_probe(resolved, groups),
        shared("backward"),
        calls,
        math.ceil(optimiser_steps(resolved.config, make_method(resolved), groups) * share),
        calls // len(resolved.reward.parts),
        seen=shared("decoded"),
    )


def optimiser_steps(config: RunConfig, method: Any, groups: int) -> int:
    """Optimiser steps of one epoch of ``groups`` groups (``update_order.windows``)."""
    minibatches = -(-groups // config.update.minibatch)
    windows = -(-minibatches // config.update.accumulation)
    shuffled = config.update.order == "step-shuffled" and method.granularity in ("step", "noised")
    slots = config.schedule.steps
    if config.schedule.sampler == "flow" and needs_log_prob(method):
        slots = int(sum(trained_steps(config.schedule, "official")))
    return windows * (slots if shuffled else 1) * config.update.inner_epochs


def _evaluation_branches(config: RunConfig) -> int:
    """Denoiser calls a step in the evaluation, whose guidance is its own."""
    return 2 if is_guided(replace(config.model, guidance_scale=config.eval.guidance_scale)) else 1


def evaluation_work(resolved: Resolved) -> Work:
    """Judging one checkpoint on the reported prompts; all candidates of a method that searches."""
    e, method = resolved.config.eval, make_method(resolved)
    candidates = method.candidates if isinstance(method, Search) else 1
    prompts = sum(len(load_prompts(name)) for name in (e.train, e.validation, e.unseen) if name)
    branches = _evaluation_branches(resolved.config)
    images = prompts * e.images_per_prompt * candidates
    return Work(outside_forward=branches * images * sum(e.steps), outside_images=images * len(e.steps))


def choice_work(config: RunConfig, work: Work | None, method: Any) -> Work:
    """Judging the candidates of a run that chooses its checkpoint."""
    c = config.checkpoint
    if c is None or work is None:
        return Work()
    epochs = count_epochs(config, work, method)
    candidates = epochs // c.every + (epochs % c.every > 0)
    images = candidates * len(load_prompts(c.prompts)) * c.images_per_prompt
    branches = _evaluation_branches(config)
    return Work(outside_forward=branches * images * sum(c.steps), outside_images=images * len(c.steps))


def curve_work(config: RunConfig, work: Work | None, method: Any) -> Work:
    """Measuring the points of a run's learning curve, the base model's included."""
    e = config.eval
    if not e.every or work is None or method.signal == "none":
        return Work()
    epochs = count_epochs(config, work, method)
    points = 1 + epochs // e.every + (epochs % e.every > 0)
    prompts = sum(min(len(load_prompts(name)), e.curve_prompts or MOST) for name in (e.train, e.unseen) if name)
    images = points * prompts * e.curve_images_per_prompt
    branches = _evaluation_branches(config)
    return Work(outside_forward=branches * images * sum(e.curve_steps), outside_images=images * len(e.curve_steps))


def count_epochs(config: RunConfig, work: Work, method: Any) -> int:
    """Epochs of a training with this bill, the last of which may be cut."""
    groups = -(-work.images // method.members)
    return -(-groups // (config.sample.images_per_epoch // method.members))


def run_work(resolved: Resolved) -> Work | None:
    """Training, choice of the checkpoint, learning curve and evaluation of one run; None for a budget of seconds."""
    training = training_work(resolved)
    if training is None:
        return None
    config, method = resolved.config, make_method(resolved)
    outside = choice_work(config, training, method) + curve_work(config, training, method)
    return training + outside + evaluation_work(resolved)


def seconds(resolved: Resolved, work: Work | None, rates: Rates) -> float:
    """Time of a run by measured rates; a reward without a rate counts as free."""
    if work is not None:
        return _training_seconds(resolved, work, rates) + outside_seconds(resolved, work, rates)
    config, method = resolved.config, make_method(resolved)
    cycle, places = _cycle(resolved, config.sample.images_per_epoch // method.members)
    # Candidates and points of the curve come every few epochs; how many epochs there are is up to the clock.
    epochs = math.ceil(config.budget.amount * places / max(_training_seconds(resolved, cycle, rates), 1e-9))
    training = cycle.times(epochs, places)
    outside = choice_work(config, training, method) + curve_work(config, training, method) + evaluation_work(resolved)
    return config.budget.amount + outside_seconds(resolved, outside, rates)


def _training_seconds(resolved: Resolved, work: Work, rates: Rates) -> float:
    """Time of a training's own bill."""
    trained = sum(rates.rewards.get(key, 0.0) for key in reward_keys(resolved)[0])
    return (
        (work.forward - work.backward) * rates.forward
        + work.backward * rates.train
        + work.decoded * (rates.decode + trained)
        + work.seen * rates.decode
        + work.optimiser_steps * rates.optimiser_step
    )


def outside_seconds(resolved: Resolved, work: Work, rates: Rates) -> float:
    """Time of what is done beside the training's bill."""
    evaluated = sum(rates.rewards.get(key, 0.0) for key in reward_keys(resolved)[1])
    return work.outside_forward * rates.forward + work.outside_images * (rates.decode + evaluated)


def base_work(resolved: Resolved) -> Work:
    """Judging the base model on the reported prompts, once for all runs of a results folder; it never searches."""
    tuned, method = evaluation_work(resolved), make_method(resolved)
    candidates = method.candidates if isinstance(method, Search) else 1
    return Work(outside_forward=tuned.outside_forward // candidates, outside_images=tuned.outside_images // candidates)


# -- single rewards ------------------------------------------------------------------------------------------


def single_key(name: str, settings: Mapping[str, Any]) -> str:
    """Key of a single reward with its settings; sums are measured by their parts."""
    return json.dumps([name, dict(settings)], sort_keys=True)


def reward_keys(resolved: Resolved) -> tuple[set[str], set[str]]:
    """Single rewards asked for an image in training, and in the evaluation, by :func:`single_key`."""
    config = resolved.config
    trained = {single_key(*single) for single in resolved.reward.singles(config.reward.settings)}
    held_out = {single_key(*single) for name in _held_out(config) for single in choose(name).singles({})}
    return trained, trained | held_out


def _held_out(config: RunConfig) -> Iterator[str]:
    return (name for name in config.eval.rewards if not same_reward(name, config.reward.name))
