"""A run's training log as reports need it: its first and last line, or all of its numbers as one array.

A log as a list of tables takes fifteen times the memory of its numbers, and a report looks at thousands of logs.
"""

import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdpo_bench.runs.log_numbers import numbers_of
from sdpo_bench.system.json_toml import parse_json

WINDOWS = (1 << 12, 1 << 16)
"""Bytes at the end of a log in which the last line is looked for; the second is far more than one line."""


@dataclass(frozen=True, eq=False)
class LogNumbers:
    """Every number of a training log."""

    columns: Mapping[str, int]
    """Column of each number's name, such as ``pictures.contrast``."""
    values: np.ndarray
    """``[lines, columns]`` float64; NaN where a line lacks the number."""
    last: Mapping[str, Any]
    """The last line as it was logged; empty without lines."""

    def points(self, *names: str) -> np.ndarray:
        """Numbers by name ``[n, names]`` of the lines that have all of them."""
        if not all(name in self.columns for name in names):
            return np.empty((0, len(names)))
        values = self.values[:, [self.columns[name] for name in names]]
        return values[~np.isnan(values).any(axis=1)]


def log_numbers(rows: Sequence[Mapping[str, Any]]) -> LogNumbers:
    """The numbers of a log's lines, oldest first."""
    found = [dict(numbers_of(row)) for row in rows]
    names = dict.fromkeys(sys.intern(name) for numbers in found for name in numbers)
    values = np.array([[numbers.get(name, math.nan) for name in names] for numbers in found], dtype=float)
    shaped = values.reshape(len(found), len(names))  # without lines too
    return LogNumbers({name: i for i, name in enumerate(names)}, shaped, rows[-1] if rows else {})


def last_line(path: Path) -> dict[str, Any] | None:
    """The last whole JSON line of a log, read from its end; ``None`` where there is none."""
    return log_ends(path)[1] or None


def log_ends(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first line of a log and the last whole one; empty where one is missing or no JSON table."""
    first: dict[str, Any] = {}
    with suppress(OSError), open(path, "rb") as stream:
        first = _table(stream.readline())
        size = os.fstat(stream.fileno()).st_size
        for window in WINDOWS:
            stream.seek(max(0, size - window))
            for line in reversed(stream.read().splitlines()):
                if row := _table(line):
                    return first, row
    return first, {}


def _table(line: bytes) -> dict[str, Any]:
    """The JSON table in a line; empty where there is none."""
    with suppress(ValueError):
        row = parse_json(line)
        return row if isinstance(row, dict) else {}
    return {}
