"""The two sides of ``compare A B``, and whether they may be compared.

A name is a run, a method (all of its seeds), a method narrowed to one choice of settings, or the base model. Two
sides must share a setting; a refusal names the key that differs and what to type instead.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.plugins.registry import plugins
from sdpo_bench.results.comparability import Arm, Setting, differences, group_settings
from sdpo_bench.results.read_results import Results
from sdpo_bench.results.select_runs import Selection, matches, method_named, parse_select, with_methods
from sdpo_bench.statistics.eval_table import BASE

BASE_NAMES = ("base", BASE)


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
    hint = nearest(method, methods)
    raise UsageError(f"'{name}' is neither a method nor a run here.{hint} See: sdpo-bench list runs")


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
    return UsageError(f"'{name}' means {len(candidates)} things here ({options}). {_how_to_choose(candidates)}")


def _options(candidates: Sequence[Side]) -> str:
    texts = [f"{side.name} in '{side.setting.title}'" for side in candidates if side.setting]
    return "; ".join(texts[:4]) + (" ..." if len(texts) > 4 else "")


def _how_to_choose(candidates: Sequence[Side]) -> str:
    """A key in which the candidates differ, as something to type."""
    everything = [{**side.setting.settings, **side.arm.settings} for side in candidates if side.setting and side.arm]
    for key, first, _ in differences(everything[0], everything[1]):
        return f"Choose one, e.g. --select {key}={first}, or write METHOD,{key}={first}."
    return ""


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
