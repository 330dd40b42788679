"""``sdpo-bench list``: what there is, read from names, sources and run folders, without importing torch."""

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from sdpo_bench.cli.commands.list_one import describe, in_words, weights
from sdpo_bench.cli.options import echo_json
from sdpo_bench.models.known_models import KNOWN
from sdpo_bench.plugins.registry import Plugin, field_docs, plugins

METHOD_COLUMNS = ["name", "from", "what", "formula", "source"]
SHORT = 3
"""How many of them the table has, which stays readable in 80 columns."""
MORE_OF_ONE = {
    "methods": "Formula, cost and source",
    "models": "Steps, resolution, guidance, memory, download and presets",
}


def show(what: str, out: Path, as_json: bool, name: str | None = None) -> None:
    """Print one list as a table or as JSON, or all about the method or model of that name.

    Raises:
        UsageError: a name in a list whose entries have no more to say, or of no method and no model.
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

    cells = [["-" if cell is None else in_words(cell) for cell in row] for row in rows]
    optional: tuple[str, ...] = ()
    if what == "runs":
        from sdpo_bench.results.run_list import OPTIONAL as optional
    print_table(columns, cells, optional=optional, see=f"sdpo-bench list {what} --json")
    if what in MORE_OF_ONE:
        print(f"{MORE_OF_ONE[what]} of one: sdpo-bench list {what} NAME")


def _show_one(what: str, name: str, as_json: bool) -> None:
    """Everything known of one method or model."""
    data = describe(what, name)
    if as_json:
        echo_json(data)
        return
    from sdpo_bench.system.console_text import print_table

    print_table([what.removesuffix("s"), data.pop("name")], [[key, in_words(value)] for key, value in data.items()])


Listing = tuple[list[str], list[list[Any]]]


def _plugins(kind: str) -> Listing:
    found = plugins(kind)
    return ["name", "from", "what"], [[p.name, p.owner, p.summary] for p in found.values()]


def _method_row(plugin: Plugin) -> list[str]:
    return [plugin.name, plugin.owner, plugin.summary, plugin.formula, plugin.source]


def _methods(out: Path) -> Listing:
    return METHOD_COLUMNS, [_method_row(plugin) for plugin in plugins("methods").values()]


def _models(out: Path) -> Listing:
    rows = [[m.name, weights(m), m.licence, m.gated, m.native_reward, m.summary] for m in KNOWN.values()]
    return ["name", "weights", "licence", "gated", "own reward", "what"], rows


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
