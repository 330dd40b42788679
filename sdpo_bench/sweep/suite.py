"""Suites: the experiments of a table in one TOML file, shipped or given by path.

A suite is a preset (``presets.py``: sections of settings, ``[for.METHOD.section]``) with the product that it runs::

    description = "one line for the list"
    reproduces = "which table or figure"
    departs = "in what it differs from it"
    [cells]                                  # method x reward x model x variant x seed
    method = ["sdpo", "ddpo"]                # "*": every installed method
    reward = ["emoji-align"]
    model = "emoji-turbo"
    seed = [0, 1, 2]
    preset = "embedded"                      # absent: the one that fits model and reward
    [budget]                                 # the axis and amount at which every method stops
    images = 2560
    [variants.per-prompt.advantage]          # named alternatives, one job each
    normalisation = "per-prompt"
    [search]                                 # the same search for every method (see ``tuning.py``)
    seed = 1000
    steps = [1, 4]
    extend = ["update.lr"]                   # a value at the end of its list that wins adds the next one
    [search.budget]
    images = 640
    [search.grid.update]
    lr = [1e-3, 4e-3]
    [search.for.sdpo.method]                 # more keys for one method
    clip_range = [1e-4, 1e-3]
    [search.require]                         # a candidate that falls below the base model here is out
    reward = "emoji-accuracy"
    drop = 0.02
    [[search.rounds]]                        # instead of seed and budget: successive halving
    seeds = [1000]
    images = 640
    [[search.rounds]]
    keep = 2                                 # the best of the round before, once more with another seed
    seeds = [1000, 1001]
    images = 640
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, MinLen

from sdpo_bench.config.compatibility import can_learn_from, idle_settings
from sdpo_bench.config.presets import flatten, read_toml
from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.ledger import AXES
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.plugins.registry import find, plugin_tag, plugins
from sdpo_bench.seeds import checked_seed
from sdpo_bench.settings import SECTIONS, Count, Steps

TEXTS = ("description", "reproduces", "departs")
TABLES = ("cells", "variants", "search", "for")
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
EVERY = "*"
JOB_AXES = {"method.name": "method", "reward.name": "reward", "model.name": "model", "seed": "seed"}
"""Settings that are axes of ``[cells]``."""
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


class Group(NamedTuple):
    """What the jobs of one search share; they differ in the seed."""

    method: str
    reward: str
    model: str
    variant: str


@dataclass(frozen=True)
class Suite:
    """A suite file with all checks that need no resolved job."""

    name: str
    description: str
    reproduces: str
    departs: str
    methods: tuple[str, ...]
    every_method: bool
    """Whether the file says "*": every installed method, each with the rewards that it can learn from."""
    rewards: tuple[str, ...]
    models: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str | None
    common: Mapping[str, Any]
    by_method: Mapping[str, Mapping[str, Any]]
    variants: Mapping[str, Mapping[str, Any]]
    """Settings by name; one without name or settings where a suite has no variants."""
    search: Search | None

    def overrides(self, method: str, variant: str) -> dict[str, Any]:
        """Settings of a job above its presets: the common ones that it can use, the method's, the variant's."""
        return {
            **without_idle(method, self.common),
            **self.by_method.get(plugin_tag(method), {}),
            **self.variants[variant],
        }

    @property
    def groups(self) -> list[Group]:
        """Method x reward x model x variant, in the order of the file, methods varying fastest.

        ``"*"`` leaves out methods that cannot learn from a reward; a pair that is named is refused when it is resolved.
        """
        return [
            Group(method, reward, model, variant)
            for model, reward, variant, method in product(self.models, self.rewards, self.variants, self.methods)
            if not self.every_method or can_learn_from(method, reward)
        ]

    @property
    def variant_keys(self) -> tuple[str, ...]:
        """Settings in which the variants differ."""
        return tuple(dict.fromkeys(key for settings in self.variants.values() for key in settings))


def without_idle(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings meant for all methods, without those that this one has no use for."""
    idle = idle_settings(find("methods", method).load())
    return {key: value for key, value in settings.items() if not key.startswith(idle)}


def suite_folder() -> Path:
    return Path(str(files("sdpo_bench.sweep"))) / "suites"


def shipped_suites() -> dict[str, Suite]:
    """All suites in the package, by name."""
    return {path.stem: read_suite(path) for path in sorted(suite_folder().glob("*.toml"))}


def find_suite(name: str) -> Suite:
    """A shipped suite by name, or a TOML file by path.

    Raises:
        UsageError: neither, or a file that is no suite; the message has the nearest name.
    """
    if name.endswith(".toml"):
        return read_suite(Path(name))
    paths = {path.stem: path for path in suite_folder().glob("*.toml")}
    if name not in paths:
        raise UsageError(f"unknown suite '{name}'.{nearest(name, paths)} A path ending in .toml works too.")
    return read_suite(paths[name])


def read_suite(path: Path) -> Suite:
    """Parse a suite file.

    Raises:
        UsageError: not TOML, unknown names, an empty product. MissingError: not readable.
    """
    data = read_toml(path, "suite")
    try:
        return make_suite(path.stem, data)
    except UsageError as error:
        raise UsageError(f"suite '{path.stem}': {error}") from None


def make_suite(name: str, data: Mapping[str, Any]) -> Suite:
    """A suite from what its file would hold.

    Raises:
        UsageError: unknown names, an empty product.
    """
    data = dict(data)
    _refuse_unknown(data, (*TEXTS, *TABLES, *SECTIONS, "method", "reward"))
    texts = {key: data.pop(key, "") for key in TEXTS}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise UsageError(f"{key}: got {text!r}, expected a text.")
    cells, by_method = _table(data, "cells"), _tables(data, "for")
    variants = {key: flatten(table) for key, table in _tables(data, "variants").items()}
    search = _search(_table(data, "search")) if "search" in data else None
    _refuse_unknown(cells, ("method", "reward", "model", "seed", "preset"), "cells.")
    methods = _several(cells, "method")
    every_method = methods == [EVERY]
    if not isinstance(cells.get("preset", "-"), str) or not cells.get("preset", "-").strip():
        raise UsageError(f'cells.preset: got {cells["preset"]!r}. Example: preset = "embedded"')
    suite = Suite(
        name=name,
        **texts,
        methods=tuple(plugins("methods") if every_method else (find("methods", method).name for method in methods)),
        every_method=every_method,
        rewards=tuple(find("rewards", reward).name for reward in _several(cells, "reward")),
        models=tuple(_several(cells, "model")),
        seeds=tuple(checked_seed(seed, "cells.seed") for seed in _several(cells, "seed")),
        preset=cells.get("preset"),
        common=flatten(data),
        by_method={_method_tag(key): flatten(table) for key, table in by_method.items()},
        variants=variants or {"": {}},
        search=search,
    )
    _check(suite)
    return suite


def _refuse_unknown(table: Mapping[str, Any], valid: Iterable[str], prefix: str = "") -> None:
    for key in table:
        if key not in tuple(valid):
            raise UsageError(f"unknown key {prefix}'{key}'.{nearest(key, valid)}")


def _table(data: dict[str, Any], key: str) -> dict[str, Any]:
    table = data.pop(key, {})
    if not isinstance(table, dict):
        raise UsageError(f"{key} is a table: [{key}].")
    return table


def _tables(data: dict[str, Any], key: str) -> dict[str, dict[str, Any]]:
    tables = _table(data, key)
    if not all(isinstance(table, dict) for table in tables.values()):
        raise UsageError(f"[{key}] holds one table a name, e.g. [{key}.NAME.update].")
    return tables


def _several(cells: Mapping[str, Any], key: str) -> list[Any]:
    """The values of an axis, of which a file gives one or a list."""
    given = cells.get(key, [])
    values = given if isinstance(given, list) else [given]
    if not values:
        raise UsageError(f"there is nothing to run: cells.{key} is empty. Give at least one, e.g. {_EXAMPLES[key]}")
    kind = int if key == "seed" else str
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool) or not str(value).strip():
            raise UsageError(f"cells.{key}: got {value!r}. Example: {_EXAMPLES[key]}")
        if values.count(value) > 1:
            raise UsageError(f"cells.{key} names {value!r} twice; a job runs once.")
    return values


_EXAMPLES = {
    "method": 'method = ["sdpo", "ddpo"]',
    "reward": 'reward = ["emoji-align"]',
    "model": 'model = "emoji-turbo"',
    "seed": "seed = [0, 1, 2]",
}


def _method_tag(name: str) -> str:
    return plugin_tag(find("methods", name).name)


def _search(table: dict[str, Any]) -> Search:
    _refuse_unknown(table, SEARCH_KEYS, "search.")
    grid = flatten(_table(table, "grid"))
    by_method = {_method_tag(k): flatten(t) for k, t in _tables(table, "for").items()}
    rounds = _rounds(table)
    require: Requirement | None = None
    if "require" in table:
        require = validate(Requirement, _table(table, "require"), "search.require")
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
        return (Round((seed,), _budget(_table(table, "budget"), "search.budget"), None),)
    given = table.pop("rounds")
    if both := {"seed", "budget"} & set(table):
        raise UsageError(f"search.{sorted(both)[0]} and [[search.rounds]] say the same: leave one out.")
    if not isinstance(given, list) or not given or not all(isinstance(one, dict) for one in given):
        raise UsageError("search.rounds are tables: [[search.rounds]] with seeds and a budget, e.g. images = 640.")
    rounds: list[Round] = []
    for number, one in enumerate(given, 1):
        where, seeds, keep = f"search.rounds, round {number}", one.pop("seeds", None), one.pop("keep", None)
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


def _check(suite: Suite) -> None:
    """What keeps a comparison fair: one budget, one evaluation, one choice of checkpoint for all."""
    _refuse_axes("the suite", suite.common)
    own = {f"for.{name}": settings for name, settings in suite.by_method.items()}
    own |= {f"variants.{name}": settings for name, settings in suite.variants.items()}
    for where, settings in own.items():
        _refuse_axes(where, settings)
        for key in settings:
            if key.split(".")[0] in SHARED_SECTIONS:
                raise UsageError(
                    f"{where} sets {key}: budget, evaluation and checkpoint choice are the same for all jobs of a "
                    "suite. Set it at the top level."
                )
    if suite.search is not None:
        _check_search(suite.search, suite)


def _refuse_axes(where: str, settings: Mapping[str, Any]) -> None:
    """The name of a job must be what it runs."""
    for key, axis in JOB_AXES.items():
        if key in settings:
            given = list(settings[key]) if isinstance(settings[key], tuple) else settings[key]
            raise UsageError(f"{where} sets {key} = {given!r} beside cells.{axis}. Say it in cells.{axis} alone.")


def _check_search(search: Search, suite: Suite) -> None:
    _refuse_axes("search", search.grid)
    for name, grid in search.by_method.items():
        _refuse_axes(f"search.for.{name}", grid)
    if reported := sorted(set(search.seeds) & set(suite.seeds)):
        raise UsageError(
            f"search.seed = {reported[0]} is among the reported seeds; tuning on it would flatter them. "
            f"Use another, e.g. {max(suite.seeds) + 1000}."
        )
    if (search.settings.by == "validation") != bool(search.settings.prompts):
        raise UsageError('search.prompts belongs to search.by = "validation": give both or neither.')
    idle = set(search.by_method) - {plugin_tag(method) for method in suite.methods}
    if idle:
        raise UsageError(f"search.for.{sorted(idle)[0]}: that method is not among the methods of [cells].")
