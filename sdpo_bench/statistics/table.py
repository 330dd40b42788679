"""A table as data, independent of its look: every renderer shows the same cells and the same notes.

A cell keeps the number beside its text, so that CSV and JSON carry full precision, HTML can sort, and nothing has to
be parsed back from print.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sdpo_bench.statistics.intervals import ONE_SEED, Estimate

DASH = "-"


@dataclass(frozen=True)
class Column:
    """``key`` names the column in JSON and CSV, ``title`` in print."""

    key: str
    title: str
    numeric: bool = True
    help: str = ""
    """Meaning of the number, in a sentence (a tooltip in HTML)."""


@dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    text: str
    value: float | int | str | None = None
    """The number behind the text; the text itself for words; None for a dash."""
    low: float | None = None
    high: float | None = None
    seeds: int | None = None
    """Training seeds behind the number."""
    strong: bool = False
    """Not significantly different from the best of its column."""


@dataclass(frozen=True)
class Row:
    """Cells in the order of the columns; ``base`` marks the reference row."""

    cells: tuple[Cell, ...]
    base: bool = False


@dataclass(frozen=True)
class Group:
    """Rows under a common heading; one group without heading is a plain table."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """Rows that may be compared with each other, and the notes that belong to them."""

    name: str
    """A slug, unique in a report."""
    title: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    cautions: tuple[str, ...] = ()
    """Notes that stay visible where the others are folded: missing runs, too few seeds."""
    prompts: tuple[str, ...] = field(default=(), repr=False)
    """Prompts behind the scores."""

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Cautions, then the other notes."""
        return (*self.cautions, *self.notes)

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for group in self.groups for row in group.rows)


def plain_table(
    name: str,
    title: str,
    columns: Iterable[Column],
    rows: Iterable[Row],
    notes: Iterable[str] = (),
    cautions: Iterable[str] = (),
) -> Table:
    """A table without headings between its rows."""
    return Table(name, title, tuple(columns), (Group("", tuple(rows)),), tuple(notes), tuple(cautions))


def word(text: object, *, strong: bool = False) -> Cell:
    """A cell of text; an empty one is a dash without a value."""
    return Cell(str(text), str(text), strong=strong) if str(text) else Cell(DASH)


def count(value: float | None) -> Cell:
    """A whole number with thousands separators."""
    if value is None or not math.isfinite(value):
        return Cell(DASH)
    return Cell(f"{value:,.0f}", int(value) if float(value).is_integer() else value)


def number(value: float | None, digits: int, *, signed: bool = False) -> Cell:
    """A number without uncertainty."""
    if value is None or not math.isfinite(value):
        return Cell(DASH)
    return Cell(fixed(value, digits, signed=signed), value)


def fixed(value: float, digits: int, *, signed: bool = False) -> str:
    """A fixed number of decimals; what rounds to zero has no minus sign."""
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    zero = not any(char in "123456789" for char in text)
    return text.replace("-", "+" if signed else "") if zero else text


def estimate(result: Estimate | None, digits: int, *, signed: bool = False, strong: bool = False) -> Cell:
    """``value ±half`` of a t interval; the value alone where there is none."""
    if result is None:
        return Cell(DASH)
    text = fixed(result.value, digits, signed=signed)
    if result.low is not None and result.high is not None:
        text += f" ±{fixed((result.high - result.low) / 2, digits)}"
    return Cell(text, result.value, result.low, result.high, result.n_seeds, strong)


def interval(result: Estimate, digits: int) -> Cell:
    """``value [low, high]``, for intervals that are not symmetric."""
    text = fixed(result.value, digits, signed=True)
    if result.low is not None and result.high is not None:
        text += f" [{fixed(result.low, digits, signed=True)}, {fixed(result.high, digits, signed=True)}]"
    return Cell(text, result.value, result.low, result.high, result.n_seeds)


def share(result: Estimate | None) -> Cell:
    """A rate in [0, 1] as percent with its interval, which need not be symmetric."""
    if result is None:
        return Cell(DASH)
    text = f"{100 * result.value:.0f} %"
    if result.low is not None and result.high is not None:
        text += f" [{100 * result.low:.0f}, {100 * result.high:.0f}]"
    return Cell(text, result.value, result.low, result.high, result.n_seeds)


def p_value(p: float | None) -> Cell:
    """A p value to two digits; very small ones as a bound."""
    if p is None:
        return Cell(DASH)
    return Cell("<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}", p)


def p_words(p: float | None) -> str:
    """A p value in a sentence: ``p = 0.013``, or ``p < 0.001``; empty without one."""
    text = p_value(p).text
    if p is None:
        return ""
    return f"p < {text[1:]}" if text.startswith("<") else f"p = {text}"


def seeds(usable: int, total: int) -> Cell:
    """Number of usable seeds of a row, of all that were started."""
    if usable == 1 and total == 1:
        return Cell(ONE_SEED, 1)
    if usable == 1:
        return Cell(f"1 of {total}, no interval", 1)
    return Cell(str(usable) if usable == total else f"{usable} of {total}", usable)


def digits_for(values: Iterable[float]) -> int:
    """Decimals that show four significant digits of the largest value."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return 3 if largest == 0 else min(6, max(1, 3 - math.floor(math.log10(largest))))


def gathered(remarks: Mapping[str, str]) -> list[str]:
    """Remarks by row label -> one line for each different remark, naming its rows."""
    by_text: dict[str, list[str]] = {}
    for label, text in remarks.items():
        if text:
            by_text.setdefault(text, []).append(label)
    return [f"{', '.join(labels)}: {text}" for text, labels in by_text.items()]


def text_column(table: Table) -> int:
    """Index of the column with a row's name: the first column of words."""
    return next((i for i, column in enumerate(table.columns) if not column.numeric), 0)


def table_data(table: Table) -> dict[str, object]:
    """The table as plain data for JSON."""
    return {
        "name": table.name,
        "title": table.title,
        "columns": [{"key": c.key, "title": c.title, "help": c.help} for c in table.columns],
        "groups": [
            {"title": group.title, "rows": [_row_data(table.columns, row) for row in group.rows]}
            for group in table.groups
        ],
        "notes": list(table.all_notes),
        "prompts": list(table.prompts),
    }


def _row_data(columns: Sequence[Column], row: Row) -> dict[str, object]:
    data: dict[str, object] = {}
    for column, cell in zip(columns, row.cells):
        numbers = {"low": cell.low, "high": cell.high, "seeds": cell.seeds}
        extra = {key: value for key, value in numbers.items() if value is not None}
        data[column.key] = {"text": cell.text, "value": cell.value, **extra}
    return data
