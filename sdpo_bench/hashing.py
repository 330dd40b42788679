"""A run's identity: everything that can change a number, and nothing else, hashed into its folder name.

The plan of a sweep and the log of a finished run compute the same id from the same resolved configuration, so
"already done", "unfinished" and "new" are facts about folders.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any


def canonical(value: Any) -> Any:
    """Plain JSON data with one form for equal values: sorted keys, lists for tuples, ``1`` and ``1.0`` alike.

    Raises:
        ValueError: NaN or infinity, which have no JSON form and no business in a configuration.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(key): canonical(value[key]) for key in sorted(value)}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a configuration value must be finite, got {value}")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    raise TypeError(f"not a configuration value: {value!r}")


def canonical_json(value: Any) -> str:
    """The canonical text of a configuration, used for hashing and for byte-stable files."""
    return json.dumps(canonical(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def digest(value: Any, length: int = 10) -> str:
    """Hexadecimal hash of the canonical form (blake2b), ``length`` characters."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=16).hexdigest()[:length]


def run_id(config: Mapping[str, Any], *, versions: Mapping[str, str]) -> str:
    """``method-reward-model-sSEED-HASH``: readable first, unique last.

    Args:
        config: the resolved configuration without its runtime part (device, paths, workers, logging).
        versions: what else decides the numbers, e.g. ``{"reward": "emoji-align/1"}``.
    """
    parts = (config["method"]["name"], config["reward"]["name"], config["model"]["name"])
    prefix = "-".join(_slug(str(part)) for part in parts)
    return f"{prefix}-s{config['seed']}-{digest({'config': config, 'versions': versions})}"


def _slug(text: str) -> str:
    """Letters, digits and dots only: a name from outside can never leave the results folder."""
    safe = "".join(char if char.isascii() and (char.isalnum() or char == ".") else "_" for char in text)
    return safe.strip("._")[-40:] or "x"
