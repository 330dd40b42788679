"""Which steps of a flow model's trajectory draw noise in an epoch; the others follow the ODE and are not trained.

Flow-GRPO-Fast (github.com/yifan123/flow_grpo) and MixGRPO (arXiv 2507.21802) make only a short window of steps random.
Where the window is, is a pure function of the setting, the run's seed and the epoch, so a resumed run goes on exactly.
No torch here: bills are counted from the settings alone.
"""

import re
from typing import NamedTuple

from sdpo_bench import seeds
from sdpo_bench.errors import UsageError

EPOCHS_PER_POSITION = 25
"""Epochs that a sliding window stays at one place (MixGRPO's script: 25 iterations)."""

_WIDTH = r"[1-9]\d{0,3}"
_RULE = re.compile(
    rf"all|first:(?P<first>{_WIDTH})|random:(?P<random>{_WIDTH})(?::(?P<within>{_WIDTH}))?"
    rf"|window:(?P<window>{_WIDTH})(?::(?P<stay>[1-9]\d{{0,6}}))?"
)


class _Rule(NamedTuple):
    """A parsed rule."""

    width: int | None
    """Random steps; None: all."""
    within: int | None
    """The window lies within this many noisiest steps; None: within all."""
    stay: int
    """Epochs at one place."""


def random_steps(rule: str, steps: int, *, seed: int, epoch: int) -> range:
    """Steps that draw noise in an epoch. The last of the ``steps`` lands on the image, so it never does.

    ``all``: every other step. ``first:K``: the K noisiest. ``random:W``: W neighbours, their place drawn for each
    epoch. ``random:W:K``: the same within the K noisiest steps, so each of the K - W + 1 places is equally likely
    (Flow-GRPO-Fast: ``sde_window_size`` W, ``sde_window_range`` (0, K)). ``window:W:E``: W neighbours that move on by
    one step every E epochs (25 if unset) and begin again at the noisiest step, as MixGRPO's progressive strategy with
    overlap and roll-back.

    Raises:
        UsageError: not such a rule, or a window longer than T - 1 or K, or K above T - 1.
    """
    places = windows(rule, steps)
    if rule.startswith("random"):
        return places[seeds.seed_for(seed, "sde-steps", epoch) % len(places)]
    return places[(epoch // _parse(rule).stay) % len(places)]


def windows(rule: str, steps: int) -> list[range]:
    """Random steps of each place that a rule's window can have; in the long run each is as frequent as the others.

    Raises:
        UsageError: as :func:`random_steps`.
    """
    width, within, _ = _parse(rule)
    if width is None:
        return [range(steps - 1)]
    if width > steps - 1:
        way_on = f"Use at most {steps - 1}" if steps > 1 else "Use --set schedule.sde_steps=all"
        raise UsageError(
            f"schedule.sde_steps = {rule}: {width} random steps do not fit into {steps} denoising steps, the last of "
            f"which is never random. {way_on}, or a larger schedule.steps."
        )
    _check_range(rule, width, within, steps)
    places = (within or steps - 1) - width + 1 if changes_by_epoch(rule) else 1
    return [range(start, start + width) for start in range(places)]


def changes_by_epoch(rule: str) -> bool:
    """Whether other steps are random in another epoch."""
    return rule.startswith(("random", "window"))


def _check_range(rule: str, width: int, within: int | None, steps: int) -> None:
    if within is None:
        return
    if within < width:
        raise UsageError(
            f"schedule.sde_steps = {rule}: {width} random steps do not fit into the first {within}. The form is "
            f"random:W:K, W steps within the first K: use --set schedule.sde_steps=random:{within}:{width}, or K from "
            f"{width} to {steps - 1}."
        )
    if within > steps - 1:
        raise UsageError(
            f"schedule.sde_steps = {rule}: the window may reach the first {within} steps, and {steps - 1} of "
            f"schedule.steps = {steps} can be random: the last never is. Use --set schedule.sde_steps=random:{width} "
            f"for all of them, or random:{width}:K with K from {width} to {steps - 1}."
        )


def _parse(rule: str) -> _Rule:
    match = _RULE.fullmatch(rule)
    if not match:
        raise UsageError(
            f"schedule.sde_steps = {rule!r}: expected all, first:K, random:W, random:W:K (within the first K steps), "
            "window:W or window:W:EPOCHS, e.g. --set schedule.sde_steps=first:2."
        )
    width = match["first"] or match["random"] or match["window"]
    within, stay = match["within"], match["stay"]
    return _Rule(
        width=int(width) if width else None,
        within=int(within) if within else None,
        stay=int(stay or EPOCHS_PER_POSITION),
    )
