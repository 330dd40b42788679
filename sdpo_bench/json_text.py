"""JSON from files, processes and servers that somebody else may have written.

Python's parser takes more than the rest of a program can use: it reads nesting until the stack ends, integers of any
size, ``NaN`` and halves of surrogate pairs, which no UTF-8 file can hold. Here all of that is a ``ValueError`` like any
other damage, so that whoever reads a file has one kind of error to expect. Nothing here imports torch.
"""

import json
import math
from typing import Any

MOST_LEVELS = 100
"""Lists and objects within each other; records of this package have fewer than ten."""
MOST_BITS = 1000
"""Of a whole number; a larger one may be no float."""
_TOO_DEEP = f"nested more than {MOST_LEVELS} levels deep"


def parse_json(text: str | bytes) -> Any:
    """The data of a JSON text.

    Raises:
        ValueError: not JSON, or data that :func:`refuse_unusable` refuses.
    """
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError:  # whose words are about a setting of Python
        raise ValueError("a whole number of thousands of digits") from None
    refuse_unusable(data)
    return data


def refuse_unusable(data: Any, level: int = 0) -> None:
    """Refuse plain data, of JSON or TOML, that cannot be computed with or shown.

    Raises:
        ValueError: nested too deeply, a number that is no finite float, or text that has no UTF-8 form.
    """
    if isinstance(data, float):  # the most frequent kind first: logs are long
        if not math.isfinite(data):
            raise ValueError(f"the number {data}, which is not finite")
    elif isinstance(data, str):
        if not data.isascii() and any("\ud800" <= char <= "\udfff" for char in data):
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
            refuse_unusable(inner, level + 1)
