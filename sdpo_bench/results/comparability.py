"""Which runs may share a table, and how a report names what separates the others.

A *setting* is what has to be equal before two runs compete at all: base model, trained reward and its version,
training prompts and schedule, budget. An *arm* is one method with one choice of everything else; its runs differ in
the training seed alone. ``panels`` judges finished arms.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from sdpo_bench.api import execution_settings
from sdpo_bench.hashing import canonical_json, digest
from sdpo_bench.ledger import limit_text
from sdpo_bench.results.read_results import MODEL_KEYS, Notice, Run, trained_on
from sdpo_bench.settings import ModelSettings

SETTING_KEYS = (*MODEL_KEYS, "reward.", "sample.prompts", "sample.prompts.digest", "schedule.", "budget.")
FREE_KEYS = ("seed", "eval.", "guard.", *(f"model.{name}" for name in sorted(execution_settings(ModelSettings))))
"""What may differ between the runs of one arm: the seed, how a finished checkpoint is judged, when it warns (unless the
warnings choose the checkpoint), and what only moves memory about."""
MOST_LABEL_KEYS = 3
DEFAULT = "default"
"""Stands for the value of a setting that a record lacks (``api.Added``)."""


@cache
def is_setting_key(key: str) -> bool:
    """Whether runs with different values of ``key`` have separate tables."""
    return _matches_any(key, SETTING_KEYS)


def is_free_key(key: str, settings: Mapping[str, Any]) -> bool:
    """Whether runs of one arm may differ in ``key``, one of their ``settings``."""
    chooses = key.startswith("guard.") and settings.get("checkpoint.choose") == "before-collapse"
    return not chooses and _is_free(key)


@cache
def _is_free(key: str) -> bool:
    return _matches_any(key, FREE_KEYS)


def _matches_any(key: str, patterns: Iterable[str]) -> bool:
    """Whether ``key`` is one of ``patterns``, or starts with one that ends in a dot."""
    return any(key == pattern or (pattern.endswith(".") and key.startswith(pattern)) for pattern in patterns)


def shown(value: Any) -> str:
    """A setting's value as a person types it."""
    if isinstance(value, list | tuple) and value:
        return ", ".join(shown(item) for item in value)
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None or value in ("", [], ()) else str(value)


def value_words(settings: Mapping[str, Any], key: str) -> str:
    """A setting's value as a person types it; a setting that came later and has its default is not recorded."""
    return shown(settings[key]) if key in settings else DEFAULT


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Keys whose values differ, with both values; a key that only one has counts with the value ``none``."""
    keys = sorted({*a, *b})
    return [(key, shown(a.get(key)), shown(b.get(key))) for key in keys if a.get(key) != b.get(key)]


@dataclass(frozen=True, eq=False)
class Arm:
    """One method with one choice of settings; its runs differ in the seed (and in how they were judged)."""

    method: str
    label: str
    settings: Mapping[str, Any]
    """Everything but seed, evaluation and the setting's own keys."""
    runs: tuple[Run, ...]
    """One a seed, sorted by seed, in whatever state."""

    @property
    def done(self) -> tuple[Run, ...]:
        return tuple(run for run in self.runs if run.state == "done")


@dataclass(frozen=True, eq=False)
class Setting:
    """What competing runs have in common."""

    id: str
    settings: Mapping[str, Any]
    title: str
    arms: tuple[Arm, ...]
    """Sorted by label."""

    @property
    def reward(self) -> str:
        return str(self.settings["reward.name"])

    def trains_on(self, reward: str, version: str) -> bool:
        """Whether the runs were trained on this reward in this version."""
        return trained_on(self.settings, reward, version)

    @property
    def model(self) -> str:
        return str(self.settings["model.name"])


def group_settings(runs: Iterable[Run]) -> tuple[list[Setting], list[Notice]]:
    """Runs by setting and arm, the largest comparison first; runs that repeat a seed of their arm get a notice instead.

    Settings are sorted by the number of methods with a finished run, then by that of finished runs, both descending,
    then by title.
    """
    by_setting: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        arm_settings, common_settings = {}, {}
        for key, value in run.settings.items():
            if is_free_key(key, run.settings):
                continue
            if is_setting_key(key):
                common_settings[key] = value
            else:
                arm_settings[key] = value
        arms_of_setting = by_setting.setdefault(canonical_json(common_settings), {})
        arms_of_setting.setdefault(canonical_json(arm_settings), []).append(run)
    settings, notices = [], []
    for key, groups in by_setting.items():
        arms = []
        for members in groups.values():
            unique, repeats = _one_per_seed(members)
            arms.append(_arm(unique))
            notices += repeats
        first = next(iter(groups.values()))[0]
        common = {k: v for k, v in first.settings.items() if is_setting_key(k)}
        settings.append(Setting(digest(key), common, _title(common), _labelled(arms)))
    return _distinct_titles(settings), notices


def _one_per_seed(runs: Sequence[Run]) -> tuple[list[Run], list[Notice]]:
    """One run a seed: a finished run before an unfinished one, then the first by name. Others get a notice."""
    by_seed: dict[int, Run] = {}
    notices = []
    for run in sorted(runs, key=lambda run: (run.state != "done", run.id)):
        first = by_seed.setdefault(run.seed, run)
        if first is not run:
            text = f"same settings and seed as run {first.id}, so it is left out: a seed counts once"
            notices.append(Notice(run.id, text))
    return [by_seed[seed] for seed in sorted(by_seed)], notices


def _arm(runs: list[Run]) -> Arm:
    settings = runs[0].settings
    own = {k: v for k, v in settings.items() if not is_free_key(k, settings) and not is_setting_key(k)}
    return Arm(runs[0].method, runs[0].method, own, tuple(runs))


def _labelled(arms: list[Arm]) -> tuple[Arm, ...]:
    """Arms sorted by label: the method's name, plus the settings in which the arms of one method differ."""
    labelled = []
    for arm in arms:
        family = [other for other in arms if other.method == arm.method]
        keys = sorted({key for other in family for key, _, _ in differences(arm.settings, other.settings)})
        labelled.append(replace(arm, label=_label(arm, keys)))
    labels = [arm.label for arm in labelled]
    # Values that differ in a seventh digit are shown alike, and tables know arms by their labels.
    unique = [
        replace(a, label=f"{a.label} {digest(dict(a.settings), 4)}") if labels.count(a.label) > 1 else a
        for a in labelled
    ]
    return tuple(sorted(unique, key=lambda arm: arm.label))


def _label(arm: Arm, keys: Sequence[str]) -> str:
    if not keys:
        return arm.method
    texts = [f"{key.removeprefix('method.')}={value_words(arm.settings, key)}" for key in keys]
    if len(texts) > MOST_LABEL_KEYS:
        rest = f"{len(texts) - MOST_LABEL_KEYS} more, {digest(dict(arm.settings), 4)}"
        texts = [*texts[:MOST_LABEL_KEYS], rest]
    return f"{arm.method} ({', '.join(texts)})"


def amount(settings: Mapping[str, Any]) -> str:
    """The budget in words, e.g. ``2,560 images``."""
    value, axis = settings["budget.amount"], str(settings["budget.axis"])
    if isinstance(value, int | float) and not isinstance(value, bool):
        return limit_text(value, axis)
    return f"{value} {axis.replace('_', ' ')}"


def settings_text(settings: Mapping[str, Any]) -> str:
    """``update.lr = 0.001, method.clip_range = 0.01``."""
    return ", ".join(f"{key} = {shown(value)}" for key, value in settings.items())


def sampler_words(sampler: str) -> str:
    """The sampler of evaluation rows for a reader, e.g. ``ddim trailing eta=1, final image, noise bank 0``."""
    for name, words in (("sample", "final image"), ("predicted", "predicted original of the last step")):
        sampler = sampler.replace(f" {name} bank=", f", {words}, noise bank ")
    return sampler


def _title(settings: Mapping[str, Any]) -> str:
    return f"{settings['reward.name']} on {settings['model.name']}, {amount(settings)}"


def _distinct_titles(settings: list[Setting]) -> list[Setting]:
    """Settings with the same title get the keys in which they differ added to it."""
    retitled = []
    for setting in settings:
        twins = [other for other in settings if other.title == setting.title]
        keys = sorted({key for other in twins for key, _, _ in differences(setting.settings, other.settings)})
        extra = ", ".join(f"{key} = {shown(setting.settings.get(key))}" for key in keys)
        retitled.append(replace(setting, title=f"{setting.title} ({extra})" if extra else setting.title))
    return sorted(retitled, key=_place)


def _place(setting: Setting) -> tuple[int, int, str, str]:
    """Sort key of a setting: a reader wants the comparison of most methods first."""
    methods = {arm.method for arm in setting.arms if arm.done}
    return -len(methods), -sum(len(arm.done) for arm in setting.arms), setting.title, setting.id


def apart(setting: Setting, others: Iterable[Setting]) -> str:
    """Why a setting has tables of its own: what differs from the most similar one of ``others``; empty if alone."""
    rivals = [other for other in others if other is not setting]
    if not rivals:
        return ""
    candidates = [(differences(setting.settings, other.settings), other.title) for other in rivals]
    nearest, title = min(candidates, key=lambda pair: (len(pair[0]), pair[1]))
    unlike = [one for one in nearest if one[1:] != ("none", "none")]  # an empty list against a setting of other models
    texts = [f"{key} is {here} here and {there} there" for key, here, there in unlike]
    return f"Not comparable with '{title}': {'; '.join(texts)}."
