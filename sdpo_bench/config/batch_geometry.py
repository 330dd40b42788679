"""How many groups go into an optimiser step: checked once, and fitted where nobody asked for a number.

Presets are written for the group size of their own method. A method with another one (or a plugin that no preset has
heard of) must still run on them, so sizes that come from a preset or a default give way; the user's own never do.
"""

from dataclasses import replace

from sdpo_bench.errors import UsageError
from sdpo_bench.ledger import limit_text
from sdpo_bench.settings import RunConfig

SIZES = ("sample.images_per_epoch", "update.minibatch", "update.accumulation")


def fit(config: RunConfig, members: int, sources: dict[str, str]) -> RunConfig:
    """The configuration with a window of groups that divides an epoch, ``sources`` naming what was changed.

    The window shrinks to the largest divisor of the epoch's groups; accumulation gives way before the minibatch, which
    is what fits in memory. Nothing changes where the user set one of :data:`SIZES`.
    """
    update, groups = config.update, config.sample.images_per_epoch // members
    window = update.minibatch * update.accumulation
    asked = any(sources.get(key) == "you" for key in SIZES)
    if asked or groups == 0 or groups % window == 0:
        return config
    window = _divisor(groups, window)
    minibatch = _divisor(window, update.minibatch)
    sources |= dict.fromkeys(SIZES[1:], f"fitted to {groups} groups of {members} an epoch")
    return replace(config, update=replace(update, minibatch=minibatch, accumulation=window // minibatch))


def _divisor(number: int, most: int) -> int:
    """The largest divisor of ``number`` that is at most ``most``."""
    return max(d for d in range(1, min(number, most) + 1) if number % d == 0)


def check(config: RunConfig, members: int) -> None:
    """Refuse sizes that do not divide into whole groups and whole optimiser steps.

    Raises:
        UsageError: names the setting to change and a value that works.
    """
    name, images = config.method.name, config.sample.images_per_epoch
    if images % members:
        raise UsageError(
            f"sample.images_per_epoch = {images} is not a multiple of {members}, the trajectories of one prompt group "
            f"of {name}. Use {max(members, images - images % members)}."
        )
    groups, window = images // members, config.update.minibatch * config.update.accumulation
    if groups % window:
        valid = max(1, groups // window) * window * members
        raise UsageError(
            f"{groups} prompt groups an epoch (sample.images_per_epoch = {images}, {members} a group) do not divide "
            f"into optimiser steps of update.minibatch x update.accumulation = {config.update.minibatch} x "
            f"{config.update.accumulation} = {window} groups. Use --set sample.images_per_epoch={valid}, or change "
            "update.minibatch."
        )
    budget = config.budget
    if budget.axis == "images" and budget.amount % members:
        raise UsageError(
            f"a budget of {limit_text(budget.amount, 'images')} is not a multiple of {members}, the trajectories of "
            f"one prompt group of {name}. Use --budget images={int(budget.amount // members) * members or members}."
        )
