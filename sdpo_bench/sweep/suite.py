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
    [search.require]                         # below the base model's mean minus drop a candidate is out
    reward = "emoji-accuracy"
    drop = 0.02
    [[search.rounds]]                        # instead of seed and budget: successive halving
    seeds = [1000]
    images = 640
    [[search.rounds]]
    keep = 2                                 # the best of the round before, once more with another seed
    seeds = [1000, 1001]
    images = 640

A suite takes the settings that another one's search has chosen with ``[search]`` and ``suite = "NAME"`` alone: all its
variants get them, and the other suite's tuning runs are trained first where they are missing.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import count, product
from pathlib import Path
from typing import Any, NamedTuple

from sdpo_bench.config.compatibility import can_learn_from
from sdpo_bench.config.presets import flatten, read_toml
from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.plugins.registry import find, plugin_tag, plugins
from sdpo_bench.seeds import checked_seed
from sdpo_bench.settings import SECTIONS
from sdpo_bench.sweep.search import (
    SHARED_SECTIONS,
    Search,
    method_tag,
    products,
    read_search,
    refuse_unknown,
    take_table,
    take_tables,
    without_idle,
)

TEXTS = ("description", "reproduces", "departs")
TABLES = ("cells", "variants", "search", "for")
EVERY = "*"
JOB_AXES = {"method.name": "method", "reward.name": "reward", "model.name": "model", "seed": "seed"}
"""Settings that are axes of ``[cells]``."""


class Group(NamedTuple):
    """What the jobs of one search share; they differ in the seed."""

    method: str
    reward: str
    model: str
    variant: str


class Moved(NamedTuple):
    """Where a suite comes from that runs on another model (``suite_model``)."""

    suite: str
    model: str
    written_for: tuple[str, ...]
    """Models of the suite's file."""


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
    search_suite: "Suite | None" = None
    """The suite whose search this is; None for one of its own."""
    moved: Moved | None = None
    """What ``--model`` changed; None for a suite as its file says."""

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

    def searched_group(self, group: Group) -> Group:
        """Whose search gives a group its settings: its own, or that of the other suite's group without variants."""
        return group if self.search_suite is None else group._replace(variant="")

    @property
    def variant_keys(self) -> tuple[str, ...]:
        """Settings in which the variants differ."""
        return tuple(dict.fromkeys(key for settings in self.variants.values() for key in settings))


def shown_names(names: Iterable[str]) -> str:
    """Names in a sentence: ``a``, ``a and b``."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


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
    refuse_unknown(data, (*TEXTS, *TABLES, *SECTIONS, "method", "reward"))
    texts = {key: data.pop(key, "") for key in TEXTS}
    for key, text in texts.items():
        if not isinstance(text, str):
            raise UsageError(f"{key}: got {text!r}, expected a text.")
    cells, by_method = take_table(data, "cells"), take_tables(data, "for")
    variants = {key: flatten(table) for key, table in take_tables(data, "variants").items()}
    search, search_suite = _search(take_table(data, "search")) if "search" in data else (None, None)
    refuse_unknown(cells, ("method", "reward", "model", "seed", "preset"), "cells.")
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
        by_method={method_tag(key): flatten(table) for key, table in by_method.items()},
        variants=variants or {"": {}},
        search=search,
        search_suite=search_suite,
    )
    _check(suite)
    return suite


def _search(table: dict[str, Any]) -> tuple[Search, Suite | None]:
    """A suite's own search, or that of the suite which ``search.suite`` names."""
    if "suite" not in table:
        return read_search(table), None
    name = table.pop("suite")
    if table:
        raise UsageError(f"search.suite takes all of another suite's search: leave out {', '.join(sorted(table))}.")
    if not isinstance(name, str):
        raise UsageError(f'search.suite: got {name!r}. Example: suite = "embedded-long"')
    other = find_suite(name)
    if other.search is None:
        raise UsageError(f"search.suite: suite '{name}' has no search of its own.")
    return other.search, other


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
    _refuse_idle("for", suite.by_method, suite.methods)
    if suite.search is not None:
        _check_search(suite.search, suite)
    if suite.search_suite is not None:
        _check_search_suite(suite, suite.search_suite)


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
    _refuse_searched_variants(search, suite)
    _refuse_reported_seeds(search, suite.seeds)
    if (search.settings.by == "validation") != bool(search.settings.prompts):
        raise UsageError('search.prompts belongs to search.by = "validation": give both or neither.')
    if suite.search_suite is not None:
        return
    _refuse_idle("search.for", search.by_method, suite.methods)
    most = max(len(products(search.axes(method))) for method in suite.methods)
    keep = search.rounds[1].keep if len(search.rounds) > 1 else None
    if keep is not None and keep > most and not search.settings.extend:
        raise UsageError(f"search.rounds, round 2: keep = {keep}, but no method has more than {most} candidates.")


def _refuse_searched_variants(search: Search, suite: Suite) -> None:
    """What a search chooses goes before a variant's own value, which would then be no part of any run."""
    for name, settings in suite.variants.items():
        for method in suite.methods:
            if both := [key for key in settings if key in search.axes(method)]:
                raise UsageError(
                    f"variants.{name} sets {both[0]}, which the search chooses for {method}: no run would have the "
                    f"variant's value. Take {both[0]} out of the variant or of the search."
                )


def _refuse_reported_seeds(search: Search, reported: tuple[int, ...]) -> None:
    for number, one in enumerate(search.rounds, 1):
        if both := sorted(set(one.seeds) & set(reported)):
            where = f"search.rounds, round {number}" if len(search.rounds) > 1 else "search"
            free = next(seed for seed in count(max(reported) + 1000) if seed not in search.seeds)
            raise UsageError(
                f"{where}: seed {both[0]} is among the reported seeds; tuning on it would flatter them. "
                f"Use another, e.g. {free}."
            )


def _refuse_idle(where: str, by_method: Iterable[str], methods: Sequence[str]) -> None:
    """Settings of a method without a job would be left out in silence."""
    if idle := sorted(set(by_method) - {plugin_tag(method) for method in methods}):
        raise UsageError(
            f"{where}.{idle[0]}: that method is not among the methods of [cells]. Valid: {', '.join(methods)}."
        )


def _check_search_suite(suite: Suite, other: Suite) -> None:
    """Every group must have been searched there."""
    for group in suite.groups:
        if suite.searched_group(group) not in other.groups:
            raise UsageError(
                f"search.suite: suite '{other.name}' searches no settings for method {group.method}, reward "
                f"{group.reward}, model {group.model}."
            )
