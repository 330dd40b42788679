"""The ``[search]`` of a suite file: what is tried for every method, in which rounds, and what decides (``tuning``)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen

from sdpo_bench.config.compatibility import idle_settings
from sdpo_bench.config.presets import flatten
from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.ledger import AXES
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.plugins.registry import find, plugin_tag
from sdpo_bench.seeds import checked_seed
from sdpo_bench.settings import Count, Steps

SEARCH_KEYS = (
    "seed",
    "budget",
    "rounds",
    "grid",
    "for",
    "require",
    "steps",
    "by",
    "prompts",
    "images_per_prompt",
    "extend",
)
SHARED_SECTIONS = ("budget", "eval", "checkpoint")
"""Sections that must be the same for all jobs of a suite."""


@dataclass(frozen=True)
class SearchSettings:
    """How hyperparameters are chosen for each method."""

    steps: Annotated[tuple[Steps, ...], MinLen(1)]
    """Numbers of denoising steps whose mean score decides."""
    by: Literal["reward", "validation"] = "reward"
    """Mean trained reward on the training prompts, or on validation prompts."""
    prompts: str = ""
    """Prompt set of ``by = "validation"``."""
    images_per_prompt: Count = 1
    """Images of every prompt and step count."""
    extend: tuple[str, ...] = ()
    """Keys whose lists of numbers grow by one value, in the ratio of the last two, where the value at an end wins."""


@dataclass(frozen=True)
class Requirement:
    """What a candidate must keep besides the trained reward.

    Its mean score by ``reward`` at the search's step counts is at least the base model's minus ``drop``.
    """

    reward: str
    drop: Annotated[float, Ge(0)]


@dataclass(frozen=True)
class Round:
    """One round of a search by successive halving."""

    seeds: tuple[int, ...]
    """Training seeds; a candidate's score is the mean over them."""
    budget: Mapping[str, Any]
    """One ``budget.AXIS``: what each tuning run may use."""
    keep: int | None
    """How many of the round before take part, the best first; None for all."""


@dataclass(frozen=True)
class Search:
    """A grid of settings, alike for every method but for keys that only one has."""

    settings: SearchSettings
    rounds: tuple[Round, ...]
    grid: Mapping[str, tuple[Any, ...]]
    by_method: Mapping[str, Mapping[str, tuple[Any, ...]]]
    require: Requirement | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """All tuning seeds."""
        return tuple(sorted({seed for one in self.rounds for seed in one.seeds}))

    def axes(self, method: str) -> dict[str, tuple[Any, ...]]:
        """Values to try by key, without keys that the method has no use for."""
        return {**without_idle(method, self.grid), **self.by_method.get(plugin_tag(method), {})}


def products(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value a key, the last key varying fastest; one empty choice where there is no key."""
    return [dict(zip(axes, values)) for values in product(*axes.values())]


def without_idle(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings meant for all methods, without those that this one has no use for."""
    idle = idle_settings(find("methods", method).load())
    return {key: value for key, value in settings.items() if not key.startswith(idle)}


def read_search(table: dict[str, Any]) -> Search:
    """A search from its table.

    Raises:
        UsageError: unknown keys, nothing to try, rounds that keep nobody or everybody.
    """
    refuse_unknown(table, SEARCH_KEYS, "search.")
    grid = flatten(take_table(table, "grid"))
    by_method = {method_tag(k): flatten(t) for k, t in take_tables(table, "for").items()}
    rounds = _rounds(table)
    require: Requirement | None = None
    if "require" in table:
        require = validate(Requirement, take_table(table, "require"), "search.require")
        require = replace(require, reward=find("rewards", require.reward).name)
    for axes in (grid, *by_method.values()):
        for key, values in axes.items():
            if not isinstance(values, list) or not values:
                raise UsageError(f"search: {key} = {values!r} is no list of values to try.")
            if key.split(".")[0] in SHARED_SECTIONS:
                raise UsageError(f"search: {key} is not a hyperparameter of a method.")
    if not grid and not by_method:
        raise UsageError("search: nothing to try. Add [search.grid.update] with e.g. lr = [1e-3, 4e-3].")
    settings: SearchSettings = validate(SearchSettings, table, "search")
    for key in settings.extend:
        _refuse_unextendable(key, [axes[key] for axes in (grid, *by_method.values()) if key in axes])
    own = {m: {k: tuple(v) for k, v in axes.items()} for m, axes in by_method.items()}
    return Search(settings, rounds, {k: tuple(v) for k, v in grid.items()}, own, require)


def _rounds(table: dict[str, Any]) -> tuple[Round, ...]:
    """The rounds of a search: those of ``[[search.rounds]]``, or one by ``seed`` and ``[search.budget]``."""
    if "rounds" not in table:
        if "seed" not in table:
            raise UsageError("search.seed is missing: a training seed that no reported run has. Example: seed = 1000")
        seed = checked_seed(table.pop("seed"), "search.seed")
        return (Round((seed,), _budget(take_table(table, "budget"), "search.budget"), None),)
    given = table.pop("rounds")
    if both := {"seed", "budget"} & set(table):
        raise UsageError(f"search.{sorted(both)[0]} and [[search.rounds]] say the same: leave one out.")
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise UsageError("search.rounds are tables: [[search.rounds]] with seeds and a budget, e.g. images = 640.")
    rounds: list[Round] = []
    for number, one in enumerate(given, 1):
        where = f"search.rounds, round {number}"
        refuse_unknown(one, ("seeds", "keep", *AXES), f"in {where}: ")
        seeds, keep = one.pop("seeds", None), one.pop("keep", None)
        if not isinstance(seeds, list) or not seeds or len(set(map(str, seeds))) < len(seeds):
            raise UsageError(f"{where}: got seeds = {seeds!r}. Example: seeds = [1000, 1001]")
        if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
            raise UsageError(f"{where}: got keep = {keep!r}. Example: keep = 4")
        if (keep is None) != (number == 1):
            raise UsageError(f"{where}: keep says how many of the round before go on; all but the first need it.")
        if number > 2 and keep is not None and rounds[-1].keep is not None and keep >= rounds[-1].keep:
            raise UsageError(f"{where}: keep = {keep} leaves out nobody; the round before has {rounds[-1].keep}.")
        rounds.append(Round(tuple(checked_seed(seed, where) for seed in seeds), _budget(one, where), keep))
    return tuple(rounds)


def _budget(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    if len(table) != 1 or next(iter(table)) not in AXES:
        raise UsageError(f"{where} names one axis, got {dict(table)}. Valid: {', '.join(AXES)}.")
    return flatten({"budget": table})


def _refuse_unextendable(key: str, lists: Sequence[Sequence[Any]]) -> None:
    """Only ascending lists of positive numbers have a next value."""
    for values in lists:
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool) and v > 0]
        if len(numbers) < 2 or len(numbers) < len(values) or list(values) != sorted(set(numbers)):
            raise UsageError(
                f"search.extend: {key} = {list(values)} has no next value; give ascending numbers above 0."
            )
    if not lists:
        raise UsageError(f"search.extend names {key}, which the search does not try.")


# -- tables of a suite file ----------------------------------------------------------------------------------


def refuse_unknown(table: Mapping[str, Any], valid: Iterable[str], prefix: str = "") -> None:
    for key in table:
        if key not in tuple(valid):
            raise UsageError(f"unknown key {prefix}'{key}'.{nearest(key, valid)}")


def take_table(data: dict[str, Any], key: str) -> dict[str, Any]:
    """Remove a table from the data and return it; empty where there is none."""
    table = data.pop(key, {})
    if not isinstance(table, dict):
        raise UsageError(f"{key} is a table: [{key}].")
    return table


def take_tables(data: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    """:func:`take_table` of a table that holds tables."""
    tables = take_table(data, key)
    if not all(isinstance(table, dict) for table in tables.values()):
        raise UsageError(f"[{key}] holds one table a name, e.g. [{key}.NAME.update].")
    return tables


def method_tag(name: str) -> str:
    """The name under which a suite file keeps a method's own tables."""
    return plugin_tag(find("methods", name).name)
