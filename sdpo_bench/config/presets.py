"""Presets: named sets of settings in TOML, shipped or given by path, with parts that apply to one method only.

A preset file looks like this::

    description = "one line for the list"
    [match]                       # chosen when the user names no preset
    model = "emoji-turbo"
    reward = ["emoji-align"]      # absent: any
    [update]                      # any section of the settings
    lr = 1e-3
    [for.ddpo.update]             # the same sections, for one method
    lr = 2e-3
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdpo_bench.errors import MissingError, UsageError, nearest
from sdpo_bench.hashing import canonical
from sdpo_bench.plugins.registry import plugin_tag, plugins
from sdpo_bench.system.json_toml import parse_toml


@dataclass(frozen=True)
class Preset:
    """A preset file, read."""

    name: str
    description: str
    match: Mapping[str, Any]
    common: dict[str, Any]
    by_method: dict[str, dict[str, Any]]

    def settings_for(self, *methods: str) -> dict[str, Any]:
        """Flat ``section.key`` settings: the common ones, then those of each method named, in order."""
        settings = dict(self.common)
        for method in methods:
            settings |= self.by_method.get(plugin_tag(method), {})
        return settings

    def fits(self, model: str, reward: str) -> bool:
        """Whether this preset is the automatic choice for the model and reward."""
        if not self.match:
            return False
        return _in(model, self.match.get("model")) and _in(reward, self.match.get("reward"))


def _in(value: str, allowed: Any) -> bool:
    if allowed is None:
        return True
    names = [allowed] if isinstance(allowed, str) else allowed
    return plugin_tag(value) in {plugin_tag(name) for name in names}


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables to ``section.key`` entries."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def preset_folder() -> Path:
    return Path(str(files("sdpo_bench.config"))) / "presets"


def shipped_presets() -> dict[str, Preset]:
    """All presets in the package, by name."""
    return {path.stem: read_preset(path) for path in sorted(preset_folder().glob("*.toml"))}


def read_preset(path: Path) -> Preset:
    """Parse a preset file.

    Raises:
        UsageError: not TOML. MissingError: not readable.
    """
    data = read_toml(path, "preset")
    description = str(data.pop("description", ""))
    match = data.pop("match", {})
    by_method = data.pop("for", {})
    if not isinstance(by_method, Mapping) or not all(isinstance(v, Mapping) for v in by_method.values()):
        raise UsageError(f"preset file '{path}': [for] holds one table a method, e.g. [for.ddpo.update].")
    methods = {plugin_tag(name): flatten(table) for name, table in by_method.items()}
    installed = [plugin_tag(plugin) for plugin in plugins("methods")]
    for name in by_method:
        if plugin_tag(name) not in installed:
            # Left out in silence, a misspelt section would make another run under the name of the intended one.
            raise UsageError(
                f"preset file '{path}': [for.{name}] is for a method that is not installed.{nearest(name, installed)} "
                "Correct the name, install the plugin that brings the method, or remove the section."
            )
    return Preset(path.stem, description, match, flatten(data), methods)


def find_preset(name: str) -> Preset:
    """A shipped preset by name, or a TOML file by path.

    Raises:
        UsageError: neither; the message has the nearest name.
    """
    if name.endswith(".toml"):
        return read_preset(Path(name))
    paths = {path.stem: path for path in preset_folder().glob("*.toml")}
    if name not in paths:
        raise UsageError(f"unknown preset '{name}'.{nearest(name, sorted(paths))} A path ending in .toml works too.")
    return read_preset(paths[name])


def automatic_preset(model: str, reward: str) -> Preset | None:
    """The shipped preset that matches; the one naming the reward goes before one that takes any."""
    fitting = [p for p in shipped_presets().values() if p.fits(model, reward)]
    fitting.sort(key=lambda p: ("reward" not in p.match, p.name))
    return fitting[0] if fitting else None


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """A TOML file that a person may have written; ``kind`` names it in messages.

    Raises:
        UsageError: not TOML, a number that is not finite, a date or a time. MissingError: not readable.
    """
    try:
        data = parse_toml(path.read_text(encoding="utf-8-sig"))  # some editors begin UTF-8 with a mark
        canonical(data)  # refuses dates and times
        return data
    except OSError as error:
        raise MissingError(f"{kind} file '{path}' cannot be read: {error.strerror}.") from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"{kind} file '{path}' is not valid TOML: {error}.") from error
