"""Notices of a report by setting, method and kind, so that one line stands for the seeds that share a problem."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sdpo_bench.results.comparability import Setting
from sdpo_bench.results.read_results import Notice


@dataclass(frozen=True)
class NoticeGroup:
    """Notices of one method with one kind of text."""

    title: str
    notices: tuple[Notice, ...]


@dataclass(frozen=True)
class RunPlace:
    """Where a run stands: its label, reward and how many runs its method has there."""

    label: str
    reward: str
    seeds: int


def run_places(settings: Sequence[Setting]) -> dict[str, RunPlace]:
    """By run id."""
    places = {}
    for setting in settings:
        for arm in setting.arms:
            for run in arm.runs:
                places[run.id] = RunPlace(arm.label, setting.reward, len(arm.runs))
    return places


def group_notices(notices: Sequence[Notice], places: Mapping[str, RunPlace]) -> tuple[NoticeGroup, ...]:
    """Groups in the order of their first notice; a notice about no run of the tables is a group of its own."""
    groups: dict[tuple[str, str, str], list[Notice]] = {}
    for notice in notices:
        place = places.get(notice.where)
        key = (place.reward, place.label, kind_words(notice.text)) if place else ("", notice.where, notice.text)
        groups.setdefault(key, []).append(notice)
    return tuple(NoticeGroup(_title(key, members, places), tuple(members)) for key, members in groups.items())


def kind_words(text: str) -> str:
    """The text without what differs between seeds: the epoch and measured numbers; a threshold in brackets stays."""
    text = re.sub(r"^warned in epoch \d+: ", "", text)
    if threshold := re.search(r"\(guard\.\w+ = ([\d.eE+-]+)\)$", text):
        sentence = re.split(r":|, it was", text[: threshold.start()])[0].strip()
        return f"{sentence} ({threshold[0][1:-1]})"
    return re.sub(r"\d+(\.\d+)?", "N", text)


def _title(key: tuple[str, str, str], members: Sequence[Notice], places: Mapping[str, RunPlace]) -> str:
    reward, label, kind = key
    place = places.get(members[0].where)
    if place is None:
        return f"{label}: {kind}"
    runs = len({notice.where for notice in members})
    text = kind if runs > 1 else re.sub(r"^warned in ", "", members[0].text)
    return f"{label} on {reward}: {text} in {runs} of {place.seeds} seed{'s' * (place.seeds != 1)}"
