"""The two sides of ``compare A B``, and whether they may be compared.

A name is a run, a method (all of its seeds), a method narrowed to one choice of settings, or the base model. Two
sides must share a setting; a refusal names the key that differs and what to type instead.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from sdpo_bench.errors import UsageError, did_you_mean, nearest
from sdpo_bench.plugins.registry import plugins
from sdpo_bench.results.comparability import (
    Arm,
    Setting,
    differences,
    group_settings,
    is_setting_key,
    shown,
)
from sdpo_bench.results.read_results import Results, Run
from sdpo_bench.results.select_runs import (
    ALIASES,
    Selection,
    facts,
    matches,
    method_named,
    parse_select,
    with_methods,
)
from sdpo_bench.statistics.eval_table import BASE

BASE_NAMES = ("base", BASE)
_FIRST_KEYS = ("model.name", "reward.name", "budget.", "schedule.steps")
"""Settings, or the starts of them, by which a person chooses first."""
_SHORT = {key: short for short, key in ALIASES.items()}


@dataclass(frozen=True, eq=False)
class Side:
    """What one of the two names stands for: an arm (all of its seeds, or one), or the base model (``arm`` None)."""

    name: str
    setting: Setting | None
    arm: Arm | None


def find_sides(results: Results, a: str, b: str, selection: Selection) -> tuple[Side, Side]:
    """What the two names stand for.

    Raises:
        UsageError: unknown or ambiguous names, or sides that are not comparable, naming the key that differs.
    """
    selection = with_methods(selection, {run.method for run in results.runs})
    runs = [run for run in results.runs if matches(run, selection)]
    if not runs:
        problem = "no run fits --select" if results.runs else f"no run in '{results.out}' can be read"
        raise UsageError(f"{problem}. See: sdpo-bench list runs --out {shlex.quote(str(results.out))}")
    settings, _ = group_settings(runs)
    if a in BASE_NAMES and b in BASE_NAMES:
        raise UsageError("both names are the base model. Give a run or a method for one of them.")
    _refuse_untrained(results, (a, b), selection)
    candidates_a, candidates_b = _candidates(settings, a), _candidates(settings, b)
    if a in BASE_NAMES:
        return _with_short_names(Side(BASE, None, None), _only(candidates_b, b))
    if b in BASE_NAMES:
        return _with_short_names(_only(candidates_a, a), Side(BASE, None, None))
    return _with_short_names(*_matched(candidates_a, candidates_b, a, b))


def _candidates(settings: Sequence[Setting], name: str) -> list[Side]:
    """Every arm that a name can mean: ``method[,key=value...]``, or one run as an arm of its own."""
    if name in BASE_NAMES:
        return []
    method, *conditions = name.split(",")
    methods = {arm.method for setting in settings for arm in setting.arms}
    method = method_named(method, methods)
    sides = _method_sides(settings, method, parse_select(conditions))
    if sides:
        return sides
    run_sides = _run_sides(settings)
    sides = [side for side in run_sides if side.name == name]
    if not sides:
        sides = [side for side in run_sides if side.name.startswith(name)]
    if len(sides) > 1:
        raise UsageError(f"'{name}' fits {len(sides)} runs: {', '.join(side.name for side in sides[:5])}.")
    if sides:
        return sides
    runs = [run for setting in settings for arm in setting.arms for run in arm.runs if run.method == method]
    if runs and conditions:
        raise _unmet(method, runs, parse_select(conditions))
    hint = nearest(method, methods)
    raise UsageError(f"'{name}' is neither a method nor a run here.{hint} See: sdpo-bench list runs")


def row_named(setting: Setting, name: str) -> str:
    """Label of the row that a name means in the tables of a setting: a label, or ``method[,key=value...]``.

    Returns:
        Empty where the setting has no such row.

    Raises:
        UsageError: several rows.
    """
    labels = [arm.label for arm in setting.arms]
    typed = method_named(name, labels)
    if typed in labels:
        return typed
    method, *conditions = name.split(",")
    if any("=" not in condition for condition in conditions):
        return ""
    method = method_named(method, {arm.method for arm in setting.arms})
    sides = _method_sides([setting], method, parse_select(conditions))
    if len(sides) > 1:
        raise _ambiguous(name, sides)
    return sides[0].name if sides else ""


def _unmet(method: str, runs: Sequence[Run], conditions: Selection) -> UsageError:
    """Why no arm of a method that has runs meets the conditions, with the values that there are."""
    left = list(runs)
    for key, values in conditions.items():
        meeting = [run for run in left if matches(run, {key: values})]
        if meeting:
            left = meeting
            continue
        if not any(key in facts(run) for run in left):
            return UsageError(f"no run of {method} has a key '{key}'.{did_you_mean(key, facts(left[0]))}")
        there = sorted({shown(facts(run)[key]) for run in left if key in facts(run)})
        return UsageError(f"no run of {method} has {key} = {', '.join(values)}. Here it is {' or '.join(there)}.")
    # A free key, such as the seed, chooses runs of an arm and leaves no whole arm.
    words = [f"{key}={','.join(values)}" for key, values in conditions.items()]
    return UsageError(
        f"{', '.join(conditions)} chooses among the seeds or evaluations of {method}. Write METHOD and "
        + " ".join(f"--select {shlex.quote(word)}" for word in words)
    )


def _refuse_untrained(results: Results, names: Sequence[str], selection: Selection) -> None:
    """Raises UsageError for a method that exists and has no run here."""
    trained = {run.method for run in results.runs}
    for method in [name.partition(",")[0] for name in names]:
        if method in trained or method not in plugins("methods"):
            continue
        selected = " that fits --select" if selection else ""
        raise UsageError(
            f"'{method}' has no run in '{results.out}'{selected}. Train it: sdpo-bench run --method {method}"
            f"{_out_option(results.out)}"
        )


def _out_option(out: Path) -> str:
    """What sends a run to the results folder at hand."""
    return "" if out == Path("results") else f" --out {shlex.quote(str(out))}"


def _with_short_names(a: Side, b: Side) -> tuple[Side, Side]:
    """Methods of plugin files without their digest, unless that alone tells the sides apart: names head columns."""
    short_a, short_b = _with_short_name(a), _with_short_name(b)
    return (a, b) if short_a.name == short_b.name else (short_a, short_b)


def _with_short_name(side: Side) -> Side:
    if side.arm is None or side.name in [run.id for run in side.arm.runs]:
        return side
    name = side.name.replace(side.arm.method, side.arm.method.partition("@")[0], 1)
    return Side(name, side.setting, replace(side.arm, label=name))


def _method_sides(settings: Sequence[Setting], method: str, conditions: Selection) -> list[Side]:
    """The arms of a method whose runs all meet the conditions."""
    sides = []
    for setting in settings:
        for arm in setting.arms:
            if arm.method == method and all(matches(run, conditions) for run in arm.runs):
                sides.append(Side(arm.label, setting, arm))
    return sides


def _run_sides(settings: Sequence[Setting]) -> list[Side]:
    """Every run as an arm of its own, by run id."""
    sides = []
    for setting in settings:
        for arm in setting.arms:
            for run in arm.runs:
                sides.append(Side(run.id, setting, replace(arm, label=run.id, runs=(run,))))
    return sides


def _only(candidates: Sequence[Side], name: str) -> Side:
    if len(candidates) == 1:
        return candidates[0]
    raise _ambiguous(name, candidates)


def _ambiguous(name: str, candidates: Sequence[Side]) -> UsageError:
    options = _options(candidates)
    return UsageError(f"'{name}' means {len(candidates)} things here ({options}). {_how_to_choose(name, candidates)}")


def _options(candidates: Sequence[Side]) -> str:
    texts = [f"{side.name} in '{side.setting.title}'" for side in candidates if side.setting]
    return "; ".join(texts[:4]) + (" ..." if len(texts) > 4 else "")


def _how_to_choose(name: str, candidates: Sequence[Side]) -> str:
    """Words that mean one of the candidates alone, as something to type."""
    for wanted in candidates:
        keys = _telling_keys(wanted, candidates)
        if not keys:
            continue
        words = [f"{_SHORT.get(key, key)}={shown(_settings(wanted)[key])}" for key in keys]
        typed = shlex.quote(",".join([name, *words]))
        if not all(is_setting_key(key) for key in keys):  # --select narrows both sides: the other may lack the key
            return f"Choose one, e.g. {typed}."
        return f"Choose one, e.g. {' '.join(f'--select {shlex.quote(word)}' for word in words)}, or write {typed}."
    runs = [side.arm.runs[0].id for side in candidates if side.arm]
    return f"Choose a run of one, e.g. {runs[0]}."


def _telling_keys(wanted: Side, candidates: Sequence[Side]) -> list[str]:
    """The first keys, those that a person thinks of before others, whose values no other candidate has.

    Empty where what can be typed does not tell the candidates apart.
    """
    assert wanted.arm
    settings = _settings(wanted)
    differing = {key for other in candidates for key, _, _ in differences(settings, _settings(other))}
    keys: list[str] = []
    left = [side for side in candidates if side is not wanted]
    for key in sorted(differing, key=_place):
        value = shown(settings.get(key))
        condition = {key: [value]}
        if "," in value or not all(matches(run, condition) for run in wanted.arm.runs):
            continue  # as --select reads it, the text is another value
        alike = [side for side in left if side.arm and all(matches(run, condition) for run in side.arm.runs)]
        if len(alike) < len(left):
            keys.append(key)
            left = alike
        if not left:
            return keys
    return []


def _settings(side: Side) -> dict[str, Any]:
    return {**side.setting.settings, **side.arm.settings} if side.setting and side.arm else {}


def _place(key: str) -> tuple[int, str]:
    """Sort key of a setting: that of the model first, details last."""
    places = [place for place, start in enumerate(_FIRST_KEYS) if key.startswith(start)]
    return (places[0] if places else len(_FIRST_KEYS)), key


def _matched(a: Sequence[Side], b: Sequence[Side], name_a: str, name_b: str) -> tuple[Side, Side]:
    """The one pair of candidates in the same setting."""
    comparable = [(x, y) for x, y in product(a, b) if x.setting is y.setting]
    pairs = [(x, y) for x, y in comparable if x.name != y.name]
    if len(pairs) == 1:
        return pairs[0]
    if comparable and not pairs:
        raise UsageError(f"'{name_a}' and '{name_b}' are the same runs.")
    if not pairs:
        raise UsageError(f"{name_a} and {name_b} cannot be compared: {_what_differs(a, b)}")
    sides = a if len({id(x.arm) for x, _ in pairs}) > 1 else b
    involved = [side for side in sides if any(side in pair for pair in pairs)]
    raise _ambiguous(name_a if sides is a else name_b, involved)


def _what_differs(a: Sequence[Side], b: Sequence[Side]) -> str:
    """The keys in which the most similar candidates differ, and what to type where that is the budget alone."""
    pairs = []
    for x, y in product(a, b):
        if x.setting and y.setting:
            pairs.append((differences(x.setting.settings, y.setting.settings), x, y))
    fewest, first, second = min(pairs, key=lambda pair: len(pair[0]))
    texts = [f"{key} is {here} for the first and {there} for the second" for key, here, there in fewest]
    only_budget = all(key.startswith("budget.") for key, _, _ in fewest)
    return f"{'; '.join(texts)}." + (f" Train both alike: {_same_budget(first, second)}" if only_budget else "")


def _same_budget(first: Side, second: Side) -> str:
    """The command that trains the second side again, with all of its settings and the first side's budget."""
    assert first.setting and second.arm
    run = second.arm.runs[0].folder
    axis, amount = (first.setting.settings[f"budget.{key}"] for key in ("axis", "amount"))
    words = ["sdpo-bench", "run", "--config", str(run.path / "run.json"), "--budget", f"{axis}={amount:.12g}"]
    seeds = [one.seed for one in second.arm.runs]
    words += ["--seeds", ",".join(map(str, seeds))] if len(seeds) > 1 else []
    return shlex.join(words) + _out_option(run.path.parents[1])
