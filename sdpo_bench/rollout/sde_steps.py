"""Which steps of a flow model's trajectory draw noise in an epoch; the others follow the ODE and are not trained.

Flow-GRPO-Fast (github.com/yifan123/flow_grpo) and MixGRPO (arXiv 2507.21802) make only a short window of steps random.
Where the window is, is a pure function of the setting, the run's seed and the epoch, so a resumed run goes on exactly.
No torch here: bills are counted from the settings alone.
"""

import re

from sdpo_bench import seeds
from sdpo_bench.errors import UsageError

EPOCHS_PER_POSITION = 25
"""Epochs that a sliding window stays at one place (MixGRPO's script: 25 iterations)."""

_RULE = re.compile(r"all|(?:first|random):([1-9]\d{0,3})|window:([1-9]\d{0,3})(?::([1-9]\d{0,6}))?")


def random_steps(rule: str, steps: int, *, seed: int, epoch: int) -> range:
    """Steps that draw noise in an epoch. The last of the ``steps`` lands on the image, so it never does.

    ``all``: every other step. ``first:K``: the K noisiest. ``random:W``: W neighbours, their place drawn for each
    epoch. ``window:W:E``: W neighbours that move on by one step every E epochs (25 if unset) and begin again at the
    noisiest step, as MixGRPO's progressive strategy with overlap and roll-back.

    Raises:
        UsageError: not such a rule, or a window longer than T - 1.
    """
    width, stay = _parse(rule)
    if width is None:
        return range(steps - 1)
    if width > steps - 1:
        raise UsageError(
            f"schedule.sde_steps = {rule}: {width} random steps do not fit into {steps} denoising steps, the last of "
            f"which is never random. Use at most {max(steps - 1, 0)}, or a larger schedule.steps."
        )
    places = steps - width
    if rule.startswith("random"):
        start = seeds.seed_for(seed, "sde-steps", epoch) % places
    else:
        start = (epoch // stay) % places if rule.startswith("window") else 0
    return range(start, start + width)


def changes_by_epoch(rule: str) -> bool:
    """Whether other steps are random in another epoch."""
    return rule.startswith(("random", "window"))


def _parse(rule: str) -> tuple[int | None, int]:
    """Number of random steps (None: all) and epochs at one place."""
    match = _RULE.fullmatch(rule)
    if not match:
        raise UsageError(
            f"schedule.sde_steps = {rule!r}: expected all, first:K, random:W, window:W or window:W:EPOCHS, "
            "e.g. --set schedule.sde_steps=first:2."
        )
    fixed, sliding, stay = match.groups()
    width = fixed or sliding
    return (int(width) if width else None), int(stay or EPOCHS_PER_POSITION)
