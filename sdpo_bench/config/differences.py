"""Which settings of a run are not at their defaults: what a reader wants to see first."""

from dataclasses import MISSING, fields
from typing import Any

from sdpo_bench.hashing import canonical
from sdpo_bench.settings import SECTIONS

_DEFAULTS: dict[str, Any] = {
    f"{section}.{field.name}": canonical(field.default)
    for section, owner in SECTIONS.items()
    for field in fields(owner)
    if field.default is not MISSING
}


def differs_from_default(key: str, value: Any, source: str) -> bool:
    """Whether a setting is worth a line of its own: a name, the seed, or a value that is not its class's default.

    Args:
        key: ``section.key``.
        source: origin of the value; it decides for settings of plugins, whose classes are not looked at.
    """
    if key == "seed" or key.endswith(".name"):
        return True
    if key in _DEFAULTS:
        return bool(canonical(value) != _DEFAULTS[key])
    return source != "default"
