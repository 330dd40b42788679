"""``--select key=value``: which runs a report is about."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdpo_bench.api import StepRewardSettings, added_defaults
from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.results.comparability import shown
from sdpo_bench.results.read_results import Results, Run
from sdpo_bench.settings import SECTIONS

METHOD = "method.name"
ALIASES = {"method": METHOD, "reward": "reward.name", "model": "model.name"}
Selection = Mapping[str, Sequence[str]]
SUITE = "suite"
"""The key that takes the reported runs of a suite."""
SPLIT = "split"
"""The one key that chooses evaluation rows instead of runs."""
_UNRECORDED: dict[str, Any] = {
    f"{section}.{name}": value
    for section, owner in {**SECTIONS, "method": StepRewardSettings}.items()
    for name, value in added_defaults(owner).items()
}
"""Values of the settings that a record lacks (``api.Added``). ``method.reward`` is that of every method: one without
such a setting has the final image's reward too."""


def parse_select(texts: Iterable[str], option: str = "--select") -> dict[str, list[str]]:
    """``["method=sdpo,ddpo", "update.lr=1e-4"]`` -> ``{key: [values]}``; a key given twice takes either value.

    Raises:
        UsageError: an entry without ``=``, key or value.
    """
    selection: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        options = [value.strip() for value in values.split(",") if value.strip()]
        if not equals or not key.strip() or not options:
            raise UsageError(f"{option} takes key=value[,value], got '{text}'. Example: {option} method=sdpo,ddpo")
        key = key.strip()
        selection.setdefault(ALIASES.get(key, key), []).extend(options)
    return selection


def method_named(typed: str, names: Iterable[str]) -> str:
    """The method that a person means: a plugin file's runs have ``Class@digest``, typed as ``Class`` or ``class``.

    Raises:
        UsageError: several methods of that name.
    """
    present = sorted(set(names))
    meant = [name for name in present if "@" in name and name.partition("@")[0].lower() == typed.lower()]
    if typed in present or not meant:
        return typed
    if len(meant) > 1:
        raise UsageError(f"'{typed}' means {len(meant)} methods here: {', '.join(meant)}. Write one of them.")
    return meant[0]


def with_methods(selection: Selection, names: Iterable[str]) -> Selection:
    """The selection with its methods named as runs have them."""
    present = set(names)
    meant = {METHOD: [method_named(value, present) for value in selection.get(METHOD, ())]}
    return {**selection, **meant} if METHOD in selection else selection


def facts(run: Run) -> dict[str, Any]:
    """What a run can be selected by."""
    return {**with_unrecorded(run.settings), "run": run.id, "state": run.state}


def with_unrecorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run by ``section.key``, with those that came later and have their defaults.

    A section that a run does not have, such as ``advantage`` for methods without advantages, gets none.
    """
    sections = {key.partition(".")[0] for key in settings if "." in key}
    return {key: value for key, value in _UNRECORDED.items() if key.partition(".")[0] in sections} | dict(settings)


def matches(run: Run, selection: Selection) -> bool:
    """Whether every selected key has one of its values."""
    values_by_key = facts(run)
    return all(
        key == SPLIT or (key in values_by_key and any(same(values_by_key[key], value) for value in values))
        for key, values in selection.items()
    )


def same(value: Any, text: str) -> bool:
    """Whether a setting's value is what a person typed: numbers by value, the rest by its text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == float(value)
        except ValueError:
            return False
    return text in (shown(value), str(value))


def select(results: Results, selection: Selection) -> Results:
    """The runs that match.

    The selection omits tuning runs unless it names runs.

    Raises:
        UsageError: an unknown key, or no run left, saying which key left none and what it could be.
    """
    _check_keys(results, selection)
    selection = with_methods(selection, {run.method for run in results.runs})
    members = {suite.name: set(suite.reported) for suite in results.suites}
    tuning = tuning_only(results) if "run" not in selection else set()
    runs = [run for run in results.runs if run.id not in tuning]
    for key, values in selection.items():
        if key == SUITE:
            matching = [run for run in runs if any(run.id in members.get(value, ()) for value in values)]
        else:
            matching = [run for run in runs if matches(run, {key: values})]
        if not matching:
            valid = set(members) if key == SUITE else {shown(facts(run)[key]) for run in runs if key in facts(run)}
            raise UsageError(f"no run has {key} = {', '.join(values)}.{nearest(values[0], valid)}")
        runs = matching
    return results.keep(runs)


def tuning_only(results: Results) -> set[str]:
    """Runs that served only a suite's search: they have tables of their own and no rank."""
    reported = {run for suite in results.suites for run in suite.reported}
    return {run for suite in results.suites for run in (*suite.tuning, *suite.former_tuning)} - reported


def _check_keys(results: Results, selection: Selection) -> None:
    valid = {key for run in results.runs for key in facts(run)} | set(ALIASES) | {SPLIT, SUITE}
    for key in selection:
        if key not in valid:
            raise UsageError(f"--select: no run has a key '{key}'.{nearest(key, valid)}")
