"""Prompts from a column of a table: CSV, TSV, JSON lines or Parquet."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.system.json_toml import parse_json

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
DEFAULT_COLUMN = "prompt"


def split_column(name: str) -> tuple[str, str] | None:
    """File and column of ``file.csv`` or ``file.csv:column``; ``None`` for a name that is no table's."""
    if name.lower().endswith(SUFFIXES):
        return name, DEFAULT_COLUMN
    file, colon, column = name.rpartition(":")
    return (file, column) if colon and column and file.lower().endswith(SUFFIXES) else None


def read_column(path: Path, column: str, shown: str) -> list[str]:
    """Prompts of one column in file order, each once; empty cells are left out, line breaks become spaces.

    Args:
        shown: how messages name the source, e.g. ``prompt file 'a.csv'``.

    Raises:
        MissingError: unreadable. UsageError: not such a table, no such column, a cell that is no text, no prompts.
    """
    prompts: dict[str, None] = {}
    try:
        for row, cell in enumerate(_cells(path, column, shown), 1):
            if cell is not None and not isinstance(cell, str):
                raise UsageError(f"{shown} has {cell!r} in column '{column}', row {row}; a prompt is a text.")
            text = re.sub(r"[\r\n]+", " ", cell or "").strip()
            if "\0" in text:
                raise UsageError(f"{shown} has a NUL character in column '{column}', row {row}.")
            if text:
                prompts.setdefault(text)
    except OSError as error:
        raise MissingError(f"{shown} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{shown} is not a table in UTF-8: {error}.") from error
    if not prompts:
        raise UsageError(f"{shown} has no prompts in column '{column}'.")
    return list(prompts)


def _cells(path: Path, column: str, shown: str) -> Iterator[Any]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_cells(path, column, shown)
    return _json_cells(path, column, shown) if suffix == ".jsonl" else _csv_cells(path, column, shown)


def _csv_cells(path: Path, column: str, shown: str) -> Iterator[Any]:
    """Cells of a CSV or TSV file.

    Raises:
        UsageError: quotes or separators inside a cell that is not quoted: a part of a prompt would be dropped.
    """
    tabs = path.suffix.lower() == ".tsv"
    delimiter = "\t" if tabs else ","
    quoting: Literal[0, 3] = csv.QUOTE_NONE if tabs and not _is_quoted(path, delimiter) else csv.QUOTE_MINIMAL
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, delimiter=delimiter, quoting=quoting, strict=True)
        try:
            _require(column, list(table.fieldnames or []), shown)
            for row in table:
                if any(row.get(None) or ()):
                    raise csv.Error("it has more cells than the header")
                yield row[column]
        except csv.Error as error:
            raise UsageError(
                f"{shown} cannot be read at line {table.reader.line_num}: {error}. Put a prompt with commas or quotes "
                'between double quotes and double those inside: "a sign, ""OPEN"""'
            ) from error


def _is_quoted(path: Path, delimiter: str) -> bool:
    """Whether a file is sound under the quoting rules of CSV. Not every TSV is: PartiPrompts has no quoting, so the
    quotes of its cell ``"G I G G L E" painted in ...`` belong to the prompt."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for _ in csv.reader(file, delimiter=delimiter, strict=True):
                pass
        except csv.Error:
            return False
    return True


def _json_cells(path: Path, column: str, shown: str) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise UsageError(f"{shown} is not JSON in line {number}: {error}.") from error
            if not isinstance(row, dict):
                raise UsageError(f"{shown} has no JSON object in line {number}; expected one object a line.")
            _require(column, list(row), f"{shown}, line {number},")
            yield row[column]


def _parquet_cells(path: Path, column: str, shown: str) -> Iterator[Any]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            _require(column, list(file.schema_arrow.names), shown)
            for batch in file.iter_batches(columns=[column]):
                yield from batch.column(0).to_pylist()
    except pyarrow.ArrowException as error:
        raise UsageError(f"{shown} is not a Parquet file: {str(error).splitlines()[0]}") from error


def _require(column: str, columns: list[str], shown: str) -> None:
    if not columns:
        raise UsageError(f"{shown} is empty.")
    if column not in columns:
        raise UsageError(f"{shown} has no column '{column}'. It has: {', '.join(columns)}. Name one: FILE:COLUMN")
