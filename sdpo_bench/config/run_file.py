"""Run files: the settings of one run in TOML or YAML, or the ``run.json`` of an earlier run, and how one is written.

A run file has the keys of ``--set``, as tables or as one dotted key; names may stand alone::

    method = "ddpo"               # the same as [method] name = "ddpo"
    preset = "embedded"           # optional, as --preset
    seed = 3
    [update]
    lr = 2e-3
    [budget]
    images = 3000

A ``run.json`` holds every setting of its run, so it repeats that run under the same id.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdpo_bench.api import Method, added_defaults
from sdpo_bench.config.compatibility import idle_settings
from sdpo_bench.config.presets import flatten
from sdpo_bench.config.run_id import problem
from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.hashing import canonical
from sdpo_bench.ledger import AXES
from sdpo_bench.plugins.conflicts import same_value
from sdpo_bench.plugins.registry import typed_name
from sdpo_bench.settings import SECTIONS, RunConfig
from sdpo_bench.system.json_toml import parse_json, parse_toml

ALONE = ("method", "reward", "model")
"""Keys that name a plugin or model where they stand alone."""
_WITHOUT: Mapping[str, Mapping[str, Any]] = {"checkpoint": {"choose": "last"}, "ema": {"decay": 0.0}}
"""What to set where a run has no such section, so that neither preset nor method brings one back."""


@dataclass(frozen=True)
class RunFile:
    """The settings of a run file.

    Attributes:
        settings: by ``section.key``, as ``--set`` takes them.
        preset: the preset that it names; None: the one that fits.
        lines: the line of each key, counted from 1; empty for a ``run.json``.
        record: content of the ``run.json``; None for other files.
    """

    path: Path
    settings: Mapping[str, Any]
    preset: str | None = None
    lines: Mapping[str, int] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None

    def place(self, key: str) -> str:
        """The file, and the line of ``key`` where it is known."""
        line = self.lines.get(key)
        return f"{self.path}, line {line}" if line else str(self.path)

    def source(self, key: str) -> str:
        """Origin of a setting: the one that a record gives, else the user, who wrote the file."""
        return str(self.record.get("sources", {}).get(key, "default")) if self.record else "you"


def read_run_file(path: Path) -> RunFile:
    """Read a run file, a ``run.json``, or the ``run.json`` in a run folder.

    Raises:
        UsageError: none of these, damaged, a key given twice, a value that no setting can have.
        MissingError: not readable.
    """
    path = path / "run.json" if path.is_dir() else path
    if path.suffix not in _PARSERS:
        raise UsageError(f"--config '{path}': expected a .toml or .yaml file, or the run.json of a run.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        data, lines = _PARSERS[path.suffix](text)
        canonical(data)  # refuses dates, times and numbers that are not finite
    except OSError as error:
        raise MissingError(f"--config '{path}' cannot be read: {error.strerror}.") from error
    except (TypeError, ValueError) as error:
        kind = {".toml": "TOML", ".json": "JSON"}.get(path.suffix, "YAML")
        raise UsageError(f"--config '{path}' is not valid {kind}: {' '.join(str(error).split())}.") from error
    return _of_record(path, data) if path.suffix == ".json" else _of_tables(path, data, lines)


def _of_tables(path: Path, data: Any, lines: Mapping[str, int]) -> RunFile:
    if not isinstance(data, Mapping):
        raise UsageError(f"--config '{path}': expected settings by name, got a {type(data).__name__}.")
    if {"for", "match"} & set(data):
        raise UsageError(f"'{path}' is a preset, which holds settings of several methods. Use --preset {path}.")
    flat = flatten(data)
    preset = flat.pop("preset", None)
    for name in ALONE:
        if name in flat:
            flat[f"{name}.name"] = flat.pop(name)
    return RunFile(path, flat, None if preset is None else str(preset), _under_names(lines))


def _under_names(lines: Mapping[str, int]) -> dict[str, int]:
    return {f"{key}.name" if key in ALONE else key: line for key, line in lines.items()}


def _of_record(path: Path, record: Any) -> RunFile:
    if not isinstance(record, Mapping) or record.get("kind") != "run":
        raise UsageError(f"--config '{path}' is not the run.json of a run. Run files are .toml or .yaml files.")
    if wrong := problem(record):
        raise UsageError(f"--config '{path}' is damaged: {wrong}.")
    config = record["config"]
    reward = record.get("reward_execution", config["reward"])
    flat: dict[str, Any] = {"seed": config["seed"]} | _left_out(config)
    for section, values in (config | {"reward": reward}).items():
        if section in ("method", "reward"):
            flat |= {f"{section}.name": values["name"]}
            flat |= {f"{section}.{key}": value for key, value in values["settings"].items()}
        elif isinstance(values, Mapping):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
    return RunFile(path, flat, record=record)


def _left_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a record says by leaving it out, which a method's or a model's own default would replace."""
    flat: dict[str, Any] = {}
    for section, owner in SECTIONS.items():
        values = config.get(section)
        said = added_defaults(owner) if values else _WITHOUT.get(section, {})
        flat |= {f"{section}.{key}": value for key, value in said.items() if key not in (values or {})}
    return flat


def _toml_lines(text: str) -> dict[str, int]:
    """The line of each key, for messages; a line inside a text of several lines may be taken for a key."""
    lines: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if heading := re.match(r"\s*\[([^\[\]]+)\]\s*(#.*)?$", line):
            table = _dotted(heading[1]) + "."
        elif key := re.match(r"\s*([\w.\-\"' ]+?)\s*=", line):
            lines.setdefault(table + _dotted(key[1]), number)
    return lines


def _dotted(key: str) -> str:
    """A TOML key as ``section.key``, without quotes."""
    try:
        (flat,) = flatten(tomllib.loads(f"{key} = 0"))
    except (tomllib.TOMLDecodeError, ValueError):
        return key
    return flat


def _parse_yaml(text: str) -> tuple[Any, dict[str, int]]:
    """The data of a YAML text, and the line of each key.

    Raises:
        ValueError: not YAML, or a key given twice.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    lines: dict[str, int] = {}
    for key, line in _yaml_keys(root, ""):
        if key in lines:
            raise ValueError(f"{key} stands on line {lines[key]} and on line {line}")
        lines[key] = line
    return {} if data is None else data, lines


def _yaml_keys(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
    import yaml

    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        yield prefix + str(key.value), key.start_mark.line + 1
        yield from _yaml_keys(value, f"{prefix}{key.value}.")


_PARSERS: dict[str, Callable[[str], tuple[Any, dict[str, int]]]] = {
    ".toml": lambda text: (parse_toml(text), _toml_lines(text)),
    ".yaml": _parse_yaml,
    ".yml": _parse_yaml,
    ".json": lambda text: (parse_json(text), {}),
}


def replaced_settings(file: RunFile, given: Mapping[str, tuple[str, Any]]) -> list[str]:
    """One line for each setting of the file that the command line gives another value.

    Args:
        given: by setting, the option as it was typed and its value; None: not given.
    """
    known = dict(file.settings) | {"preset": file.preset}
    lines = []
    for key, (typed, value) in given.items():
        for name in _same_budget(key):
            ours = known.get(name)
            if value is not None and ours is not None and (name != key or not same_value(ours, value)):
                lines.append(f"{typed} replaces {name} = {_shown(ours)} of {file.place(name)}")
    return list(dict.fromkeys(lines))


def _same_budget(key: str) -> tuple[str, ...]:
    """The settings that ``key`` replaces: a budget on one axis replaces those on all others."""
    axes = tuple(f"budget.{axis}" for axis in AXES)
    return (*axes, "budget.axis", "budget.amount") if key in axes else (key,)


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# -- writing -------------------------------------------------------------------------------------------------


def run_tables(config: RunConfig, method: type[Method]) -> dict[str, Any]:
    """A resolved configuration as the tables of a run file, without the settings that its method does not use."""
    plain: dict[str, Any] = {"seed": config.seed}
    idle = idle_settings(method)
    for choice in ("method", "reward"):
        chosen = getattr(config, choice)
        plain[choice] = {"name": typed_name(f"{choice}s", chosen.name)} | _without_none(canonical(chosen.settings))
    for section in SECTIONS:
        settings = getattr(config, section)
        values = _without_none(canonical(vars(settings))) if settings is not None else {}
        values = values or dict(_WITHOUT.get(section, {}))
        used = {key: value for key, value in values.items() if not f"{section}.{key}".startswith(idle)}
        if used:
            plain[section] = used
    return plain


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no null; None is the default wherever a setting can be None."""
    return {key: value for key, value in values.items() if value is not None}


def run_file_text(config: RunConfig, method: type[Method], run_id: str, path: Path) -> str:
    """The text of a run file that gives this configuration; YAML or TOML by the suffix of ``path``.

    Raises:
        UsageError: another suffix.
    """
    head = f"# All settings of run {run_id}. Use it with: sdpo-bench run --config {path.name}\n\n"
    tables = run_tables(config, method)
    if path.suffix == ".toml":
        import tomli_w

        return head + tomli_w.dumps(tables)
    if path.suffix in (".yaml", ".yml"):
        import yaml

        return head + str(yaml.safe_dump(tables, sort_keys=False, allow_unicode=True))
    raise UsageError(f"--write-config takes a .toml or .yaml file, got '{path}'. Example: --write-config my.toml")
