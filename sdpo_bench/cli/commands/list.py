"""``sdpo-bench list``: what there is, read from names, sources and run folders, without importing torch."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from sdpo_bench.cli.options import echo_json
from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.plugins.registry import Plugin, field_docs, find, plugins

METHOD_COLUMNS = ["name", "from", "what", "formula", "source"]
SHORT = 3
"""How many of them the table has, which stays readable in 80 columns."""


def show(what: str, out: Path, as_json: bool, name: str | None = None) -> None:
    """Print one list as a table or as JSON, or all about the method of that name.

    Raises:
        UsageError: a name in another list than that of the methods, or of no method.
    """
    if name is not None:
        _show_one(what, name, as_json)
        return
    columns, rows = _LISTS[what](out)
    if what == "methods" and not as_json:
        columns, rows = columns[:SHORT], [row[:SHORT] for row in rows]
    if as_json:
        echo_json([dict(zip(columns, row)) for row in rows])
        return
    if not rows:
        print(f"no {what}" + (f" in '{out}'. Start one with: sdpo-bench run" if what == "runs" else "."))
        return
    from sdpo_bench.system.console_text import print_table

    cells = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    optional: tuple[str, ...] = ()
    if what == "runs":
        from sdpo_bench.results.run_list import OPTIONAL as optional
    print_table(columns, cells, optional=optional, see=f"sdpo-bench list {what} --json")
    if what == "methods":
        print("Formula, cost and source of one: sdpo-bench list methods NAME")


def _show_one(what: str, name: str, as_json: bool) -> None:
    """Formula, source, reward modes and cost of a method."""
    if what != "methods":
        raise UsageError(f"only 'list methods' takes a name, got '{name}' for {what}. Type: sdpo-bench list {what}")
    plugin = find("methods", name)
    data = dict(zip(METHOD_COLUMNS, _method_row(plugin)))
    data |= {"rewards": _reward_modes(plugin), "cost": _method_cost(name)}
    if as_json:
        echo_json(data)
        return
    from sdpo_bench.system.console_text import print_table

    print_table(["method", data.pop("name")], [[key, value or "-"] for key, value in data.items()])


def _reward_modes(plugin: Plugin) -> str:
    """The rewards of steps that a method can learn from, its default first; empty where it asks for none in sampling,
    and where it cannot be made, whose error ``run`` gives."""
    from sdpo_bench.config.resolve import make_method

    try:
        loaded = plugin.load()
        method = make_method(plugin.name, loaded, {})
    except (UsageError, MissingError):
        return ""
    if method.signal not in ("advantage", "preference"):
        return ""
    default = loaded.fixed.get("method.reward", method.reward_mode)
    if "method.reward" in loaded.fixed or len(method.reward_modes) == 1:
        return str(default)
    return ", ".join([default, *(mode for mode in method.reward_modes if mode != default)]) + " (method.reward)"


def _method_cost(name: str) -> str:
    """What a training image costs at the method's own settings, as ``run --dry-run`` counts it; empty where the method
    cannot be run with the default reward and model, whose error ``run`` gives."""
    from sdpo_bench.api import Search
    from sdpo_bench.config.resolve import Request, resolve
    from sdpo_bench.estimates.time_estimate import epoch_work, make_method

    try:
        resolved = resolve(Request(method=name))
        method = make_method(resolved)
        if isinstance(method, Search):
            return f"{method.candidates} samples and reward calls for every image that is delivered"
        work = epoch_work(resolved)
    except (UsageError, MissingError):
        return ""
    images, steps = work["images"], resolved.config.schedule.steps
    calls = (work["denoiser_forward"] + work["denoiser_backward"]) / images
    return (
        f"per image at {steps} steps: {calls:.4g} denoiser calls ({work['denoiser_backward'] / images:.4g} of them "
        f"backward), {work['reward_calls'] / images:.4g} reward calls; "
        f"{work['optimiser_steps']} optimiser steps for {images} images"
    )


Listing = tuple[list[str], list[list[Any]]]


def _plugins(kind: str) -> Listing:
    found = plugins(kind)
    return ["name", "from", "what"], [[p.name, p.owner, p.summary] for p in found.values()]


def _method_row(plugin: Plugin) -> list[str]:
    return [plugin.name, plugin.owner, plugin.summary, plugin.formula, plugin.source]


def _methods(out: Path) -> Listing:
    return METHOD_COLUMNS, [_method_row(plugin) for plugin in plugins("methods").values()]


def _models(out: Path) -> Listing:
    from sdpo_bench.models.known_models import KNOWN

    rows = []
    for model in KNOWN.values():
        where = "in the package" if model.location.startswith("asset:") else f"hub: {model.location}"
        rows.append([model.name, where, model.native_reward, model.summary])
    return ["name", "weights", "own reward", "what"], rows


def _presets(out: Path) -> Listing:
    from sdpo_bench.config.presets import shipped_presets

    rows = []
    for preset in shipped_presets().values():
        match = "; ".join(f"{k} = {v if isinstance(v, str) else ', '.join(v)}" for k, v in preset.match.items())
        rows.append([preset.name, match or "only when named", preset.description])
    return ["name", "chosen for", "what"], rows


def _suites(out: Path) -> Listing:
    from sdpo_bench.sweep.suite import shipped_suites

    suites = shipped_suites().values()
    return ["name", "what", "reproduces", "departs"], [[s.name, s.description, s.reproduces, s.departs] for s in suites]


def _prompts(out: Path) -> Listing:
    from sdpo_bench.prompts.prompt_sets import load_prompts, shipped_sets
    from sdpo_bench.prompts.published_sets import PUBLISHED

    rows = []
    for name in shipped_sets():
        texts = load_prompts(name)
        first = "; ".join(texts[:3]) + (" ..." if len(texts) > 3 else "")
        rows.append([name, len(texts), first, "in the package", "MIT"])
    for name, chosen in PUBLISHED.items():
        where = "cached" if chosen.cached else f"sdpo-bench fetch {name}"
        rows.append([name, chosen.count, chosen.source, where, chosen.licence])
    return ["name", "prompts", "first ones", "where", "licence"], rows


def _settings(out: Path) -> Listing:
    from typing import get_type_hints

    from sdpo_bench.plugins.parse_settings import describe_type
    from sdpo_bench.settings import SECTIONS, TrackSettings

    rows: list[list[Any]] = []
    for section, owner in (SECTIONS | {"track": TrackSettings}).items():
        docs, hints = field_docs(owner), get_type_hints(owner, include_extras=True)
        for field in fields(owner):
            default = "" if field.default is MISSING else field.default
            shown = ", ".join(map(str, default)) if isinstance(default, tuple) else str(default)
            kind = describe_type(hints[field.name])
            rows.append([f"{section}.{field.name}", kind, shown, docs.get(field.name, "")])
    return ["setting", "type", "default", "meaning"], rows


def _runs(out: Path) -> Listing:
    from sdpo_bench.results.run_list import list_runs

    return list_runs(out)


_LISTS = {
    "methods": _methods,
    "rewards": lambda out: _plugins("rewards"),
    "studies": lambda out: _plugins("studies"),
    "models": _models,
    "presets": _presets,
    "suites": _suites,
    "prompts": _prompts,
    "settings": _settings,
    "runs": _runs,
}
