"""The numbers in a line of a run's logs, under names that stay the same."""

from collections.abc import Iterator, Mapping
from typing import Any


def numbers_of(row: Mapping[str, Any], separator: str = ".", prefix: str = "") -> Iterator[tuple[str, float]]:
    """Name and value of every number; nested ones as ``pictures.diversity``, those of lists by their position."""
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from numbers_of(value, separator, name + separator)
        elif isinstance(value, list):
            yield from numbers_of({str(i): one for i, one in enumerate(value)}, separator, name + separator)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield name, float(value)
