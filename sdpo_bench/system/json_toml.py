"""JSON and TOML with finite numbers: Python's parsers also read ``NaN``, ``Infinity`` and ``1e400``."""

import json
import math
import tomllib
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """The data of a JSON text.

    Raises:
        ValueError: not JSON, nested too deeply, or a number that is not finite.
    """
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The data of a TOML text.

    Raises:
        tomllib.TOMLDecodeError: not TOML. ValueError: nested too deeply, or a number that is not finite.
    """
    try:
        return tomllib.loads(text, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text[:40]}, which is not finite")
    return number


def json_text(data: Any, *, sort_keys: bool = False) -> str:
    """JSON as ASCII, which every terminal and file can hold.

    Raises:
        ValueError: NaN or infinity.
    """
    return json.dumps(data, indent=1, allow_nan=False, sort_keys=sort_keys)


def whole_number(text: str, least: int, most: int) -> int | None:
    """A whole number typed in plain digits; ``None`` for anything else or outside the limits."""
    plain = text.isascii() and text.isdigit() and len(text) <= 2 * len(str(most))  # with zeros in front
    return int(text) if plain and least <= int(text) <= most else None
