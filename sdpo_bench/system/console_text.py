"""Text and tables on a terminal: escape what could move the cursor, align numbers, fold to the width."""

import math
import shutil
import sys
import unicodedata
from collections.abc import Sequence

PLAIN_WIDTH = 160  # columns where there is no terminal to ask
JOINERS = "\u200c\u200d"  # within words of some scripts, and within emoji; they do nothing else
LEAST_COLUMN = 8  # a column that is not the first may be folded down to this


def clean(text: str) -> str:
    """Text from outside on one line; characters that move a cursor, turn a line around or have no UTF-8 form show as
    escapes such as ``\\x1b``."""
    return text if text.isprintable() else "".join(map(_shown, text))


def _shown(char: str) -> str:
    if char.isspace():
        return " "
    unseen = unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in JOINERS
    return char.encode("unicode_escape").decode() if unseen else char


def number(value: float, digits: int = 3) -> str:
    """A number for a table; a missing one is a dash."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """``1 h 05 min``, ``7 min``, ``12 s``; a dash where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def clock(seconds: float) -> str:
    """``0:07``, ``12:05``, ``1:02:03``, ``2 d 03:15``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def gigabytes(size: float) -> str:
    """Bytes for a person, e.g. ``3.5 GB`` or ``24 MB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    optional: Sequence[str] = (),
    see: str = "",
) -> None:
    """A table on standard output, numbers right-aligned; on a narrow terminal a paragraph for each row.

    Args:
        optional: columns that a narrow terminal does without, the least important first.
        see: the command that has them all.
    """
    title, columns = clean(title), [clean(name) for name in columns]
    rows = [[clean(cell) for cell in row] for row in rows]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else PLAIN_WIDTH
    left_out: list[str] = []
    for name in optional:
        if width >= _whole_width(columns, rows):
            break
        kept = [i for i, column in enumerate(columns) if column != name]
        columns, rows = [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]
        left_out.append(name)
    if width < _least_width(columns, rows):
        print("\n".join([*([title] if title else []), *(_paragraph(columns, row) for row in rows)]))
    else:
        _print_whole(columns, rows, title, width)
    if left_out:
        print(f"No room for: {', '.join(left_out)}. With them: {see}")


def _print_whole(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str, width: int) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title) if title else None, title_justify="left")
    for i, name in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[i]) for row in rows)
        table.add_column(escape(name), justify="right" if numeric else "left", overflow="fold", no_wrap=i == 0)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console(width=width, highlight=False).print(table)


def _least_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns of a terminal that leave the rows' names in one piece, which is what a person copies."""
    longest = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    return longest[0] + sum(min(LEAST_COLUMN, most) for most in longest[1:]) + 3 * len(columns)


def _whole_width(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns of a terminal that leave all cells in one piece but those of the last column, which may be sentences."""
    longest = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    return sum(longest[:-1]) + min(len(columns[-1]), longest[-1]) + 3 * len(columns) + 1


def _paragraph(columns: Sequence[str], row: Sequence[str]) -> str:
    words = [f"{name}: {cell}" if name else cell for name, cell in zip(columns[1:], row[1:]) if cell not in ("", "-")]
    return "\n".join([row[0], *(f"  {word}" for word in words)])


def _is_number(text: str) -> bool:
    return text[:1] in "+-0123456789." and not any(c.isalpha() for c in text)
