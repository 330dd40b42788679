"""JSON and TOML from files, processes and servers that somebody else may have written.

Python's parsers take more than the rest of a program can use: they read nesting until the stack ends, integers of any
size, ``NaN`` and halves of surrogate pairs, which no UTF-8 file can hold. Here all of that is a ``ValueError`` like any
other damage, so that whoever reads a file has one kind of error to expect. Nothing here imports torch.
"""

import json
import math
import re
import tomllib
from collections.abc import Callable
from typing import Any

MOST_LEVELS = 100
"""Lists and objects within each other; records of this package have fewer than ten."""
MOST_BITS = 1000
"""Of a whole number; a larger one may be no float."""
_TOO_DEEP = f"nested too deeply (more than {MOST_LEVELS} levels)"


def parse_json(text: str | bytes) -> Any:
    """The data of a JSON text.

    Raises:
        ValueError: not JSON, or data that :func:`refuse_unusable` refuses.
    """
    data = _parse(json.loads, text)
    refuse_unusable(data)
    return data


def parse_toml(text: str, *, finite: bool = True) -> dict[str, Any]:
    """The data of a TOML text.

    Args:
        finite: refuse infinity and NaN; without it they are left to whoever knows which setting they are for.

    Raises:
        tomllib.TOMLDecodeError: not TOML. ValueError: data that :func:`refuse_unusable` refuses.
    """
    data: dict[str, Any] = _parse(tomllib.loads, text)
    refuse_unusable(data, finite=finite)
    return data


def _parse(loads: Callable[[Any], Any], text: str | bytes) -> Any:
    try:
        return loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # whose words are about a setting of Python
        raise ValueError("a whole number of thousands of digits") from None


def refuse_unusable(data: Any, level: int = 0, *, finite: bool = True) -> None:
    """Refuse plain data that cannot be computed with or shown.

    Raises:
        ValueError: nested too deeply, a number that is no finite float, or text that has no UTF-8 form.
    """
    if isinstance(data, float):  # the most frequent kind first: logs are long
        if finite and not math.isfinite(data):
            raise ValueError(f"the number {data}, which is not finite")
    elif isinstance(data, str):
        if not is_text(data):
            raise ValueError(f"text with half of a surrogate pair: {data[:40]!a}")
    elif isinstance(data, int):
        if data.bit_length() > MOST_BITS:
            raise ValueError(f"a whole number of {data.bit_length():,} bits")
    elif isinstance(data, dict | list):
        if level == MOST_LEVELS:
            raise ValueError(_TOO_DEEP)
        if isinstance(data, dict):
            for key in data:
                refuse_unusable(key)
        for inner in data.values() if isinstance(data, dict) else data:
            refuse_unusable(inner, level + 1, finite=finite)


def is_text(text: str) -> bool:
    """Whether a text has a UTF-8 form; names of files that are no UTF-8 have none."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def json_text(data: Any, **options: Any) -> str:
    """JSON as text with a UTF-8 form that moves no terminal's cursor; equal data when parsed.

    Raises:
        ValueError: NaN or infinity.
    """
    text = json.dumps(data, **{"indent": 1, "ensure_ascii": False, "allow_nan": False} | options)
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


_UNSEEN = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def whole_number(text: str, least: int, most: int) -> int | None:
    """A whole number that somebody has typed in plain digits; ``None`` for anything else or outside the limits."""
    plain = text.isascii() and text.isdigit() and len(text) <= 2 * len(str(most))  # some write zeros in front
    return int(text) if plain and least <= int(text) <= most else None
