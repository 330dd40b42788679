"""Guards against collapse: a rising reward over black, flat or ever more alike pictures must not go unseen.

Each guard looks at the numbers of a finished epoch, which describe the policy that sampled it: the one that learns, or
an old policy that follows it (``Method.keeps_old``), whose pictures break later than those of the policy that the run
delivers. The first time it fires it warns live and leaves one line in ``warnings.jsonl``, which the run's summary and
every report show. A run whose pictures have all become one colour has nothing left to learn from and is stopped. Guards
read what is logged anyway, so their thresholds change no number (``guard.*``) and are no part of a run's identity,
unless they choose its checkpoint (``checkpoint.choose = before-collapse``).
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sdpo_bench.runs.run_folder import RunFolder, best_row
from sdpo_bench.settings import GuardSettings
from sdpo_bench.system.files import atomic_write

LOG = "warnings.jsonl"
COLLAPSE = ("flat", "dark", "diversity", "kl")
"""Guards that mean the policy has left the pictures it should make; the others doubt the updates."""


@dataclass(frozen=True)
class Warned:
    """A line of ``warnings.jsonl``: who warned after which epoch, and in words."""

    epoch: int
    guard: str
    text: str

    @property
    def when(self) -> str:
        """After which epoch, in words; 0 is before the first."""
        return f"epoch {self.epoch}" if self.epoch else "before training"


def look(row: Mapping[str, Any], start: Mapping[str, Any], settings: GuardSettings) -> dict[str, str]:
    """Guards that fire on the log line ``row`` of an epoch, by name with what they say.

    Args:
        start: the first epoch's line; its pictures are the base model's.
    """
    pictures, first = row.get("pictures", {}), start.get("pictures", {})
    flat, dark = pictures.get("flat_fraction", 0.0), pictures.get("brightness", 1.0)
    diversity, before = pictures.get("diversity"), first.get("diversity")
    said = {}
    if flat >= settings.flat:
        said["flat"] = f"{flat:.0%} of the pictures are one colour (guard.flat = {settings.flat:g})"
    if dark <= settings.dark:
        said["dark"] = f"the pictures are black: mean brightness {dark:.3f} (guard.dark = {settings.dark:g})"
    if diversity is not None and before and diversity < settings.diversity * before:
        said["diversity"] = (
            f"the pictures have become alike: diversity {diversity:.3g}, it was {before:.3g} "
            f"(guard.diversity = {settings.diversity:g})"
        )
    for guard, key, limit, text in (
        ("kl", "kl_to_base", settings.kl, "the policy has moved very far from its base: KL"),
        ("clip_fraction", "clip_fraction", settings.clip_fraction, "hardly a sample moves the policy: clip fraction"),
        (
            "base_clip_fraction",
            "base_clip_fraction",
            settings.base_clip_fraction,
            "hardly a sample is within the clip range around the base model: share outside",
        ),
        (
            "clip_at_start",
            "clip_fraction_at_zero_update",
            settings.clip_at_start,
            "samples are clipped before any update, so the clip range is below rounding: clip fraction",
        ),
        (
            "ratio_at_start",
            "ratio_at_zero_update",
            settings.ratio_at_start,
            "the importance ratio is not 1 before the first update, so sampling and training disagree: off by",
        ),
    ):
        value = row.get(key)
        if value is not None and value >= limit:
            said[guard] = f"{text} {value:.3g} (guard.{guard} = {limit:g})"
    return said


def all_flat(row: Mapping[str, Any], start: Mapping[str, Any]) -> bool:
    """Whether every picture of an epoch is one colour, and the base model's were not."""
    share = [epoch.get("pictures", {}).get("flat_fraction", 0.0) for epoch in (row, start)]
    return bool(share[0] == 1.0 and share[1] < 1.0)


def fire(run: RunFolder, row: Mapping[str, Any], start: Mapping[str, Any], settings: GuardSettings) -> list[Warned]:
    """Guards that an epoch sets off for the first time in its run (see :func:`look`); they are recorded."""
    said = look(row, start, settings)
    known = {warned.guard for warned in warnings(run)} if said else set()
    fresh = [Warned(row["epoch"], guard, text) for guard, text in said.items() if guard not in known]
    for warned in fresh:
        record(run, warned)
    return fresh


def record(run: RunFolder, warned: Warned) -> None:
    """Keep a warning with the run."""
    run.append(LOG, vars(warned))


def record_once(run: RunFolder, warned: Warned) -> bool:
    """Keep a warning with the run unless it has it already; whether it is new."""
    new = warned not in warnings(run)
    if new:
        record(run, warned)
    return new


def warnings(run: RunFolder) -> list[Warned]:
    """What a run was warned of, oldest first; damaged lines are left out."""
    found = []
    with suppress(OSError, UnicodeDecodeError):
        for row in run.log(LOG):
            with suppress(TypeError, ValueError, KeyError):
                found.append(Warned(int(row["epoch"]), str(row["guard"]), str(row["text"])))
    return found


def forget_after(run: RunFolder, epoch: int) -> None:
    """Drop warnings of epochs that a resumed run will do again."""
    if (run.path / LOG).exists():
        kept = [warned for warned in warnings(run) if warned.epoch <= epoch]
        atomic_write(run.path / LOG, "".join(json.dumps(vars(w), sort_keys=True) + "\n" for w in kept))


def collapsed_at(run: RunFolder) -> int | None:
    """The first epoch whose pictures or distance to the base were those of a collapse; ``None``: there was none."""
    return min((warned.epoch for warned in warnings(run) if warned.guard in COLLAPSE), default=None)


def before_collapse(rows: Sequence[dict[str, Any]], collapse: int | None) -> dict[str, Any]:
    """The best candidate whose pictures were not yet those of a collapse; the earliest candidate where all were.

    Pictures of epoch e are the policy's after e - 1 epochs, so a candidate is sound if the next epoch's pictures are.
    Those of an old policy that follows slowly (NFT's ``late``) say less: a candidate may have broken before them.
    """
    return best_row(sound_candidates(rows, collapse) or rows[:1])


def sound_candidates(rows: Sequence[dict[str, Any]], collapse: int | None) -> list[dict[str, Any]]:
    """The candidates of before the collapse (:func:`before_collapse`)."""
    return [row for row in rows if collapse is None or row["epoch"] < collapse - 1]
