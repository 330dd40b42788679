"""A report on a terminal: tables that fit its width, each note once.

A table that is too wide is printed in several pieces, each with the rows' names, rather than folded into unreadable
cells. Notes that several tables of one part share are printed once, below the last of them; notes that several parts
share, once at the end of the report.
"""

import io
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sdpo_bench.reporting.content import Report, Section
from sdpo_bench.reporting.study_view import StudyView
from sdpo_bench.results.read_results import Notice
from sdpo_bench.statistics.table import Cell, Group, Row, Table, text_column
from sdpo_bench.system.console_text import PLAIN_WIDTH, clean

GAP = 2
MOST_NAME = 44  # a longer name of a row is cut: the wide formats have it whole


def make_console(stream: Any = None, *, width: int | None = None, colour: bool = False) -> Any:
    """A rich console that prints text as it is: no markup, no highlighting, no emoji codes."""
    from rich.console import Console

    return Console(
        file=stream,
        width=width or PLAIN_WIDTH,
        force_terminal=colour,
        highlight=False,
        markup=False,
        emoji=False,
        color_system="standard" if colour else None,
        legacy_windows=False,
    )


def terminal(report: Report, *, width: int | None = None, colour: bool = False) -> str:
    """The report as text of ``width`` columns."""
    stream = io.StringIO()
    console = make_console(stream, width=width, colour=colour)
    for line in [*report.summary, *([f"Selected: {report.selection}"] if report.selection else [])]:
        console.print(clean(line))
    shared = _shared_notes(report)
    for section in report.sections:
        _section(console, section, shared)
    if report.main:
        console.print()
        console.rule("All rewards", align="left", characters="=")
        print_tables(console, report.main, shared)
    _studies(console, report)
    if shared:
        console.print("\nNotes on several tables", style="bold")
    for note in shared:
        console.print(clean(note), style="dim")
    print_notices(console, report.notices)
    if report.verdicts:
        console.print()
    for verdict in report.verdicts:
        console.print(clean(verdict), soft_wrap=True)
    return stream.getvalue()


def _shared_notes(report: Report) -> list[str]:
    """Notes of two or more parts of a report, in their order."""
    parts: list[Sequence[Table]] = []
    for section in report.sections:
        parts += [*(part.tables for part in section.parts), section.tables]
    count: Counter[str] = Counter()
    for tables in [*parts, report.main]:
        count.update(list(dict.fromkeys(note for table in tables for note in table.all_notes)))
    return [note for note, parts_with_it in count.items() if parts_with_it > 1]


def _studies(console: Any, report: Report) -> None:
    """Beside runs a line each, so that they do not bury them; alone (``--only studies``) with their answers."""
    if not report.studies:
        return
    if report.sections or report.main:
        console.print("\nStudies, with their answers in: sdpo-bench report --only studies", style="bold")
        for study in report.studies:
            console.print(clean(f"  {study.title}: {study.question}"), no_wrap=True, overflow="ellipsis")
        return
    for study in report.studies:
        _study_in_short(console, study)
    console.print("\nDesign, tables, plots and statistics of the studies: --format html", style="dim")


def _study_in_short(console: Any, study: StudyView) -> None:
    """Question and answer: seven studies with all their tables would bury the runs."""
    console.print()
    console.rule(clean(study.title), align="left", characters="=")
    console.print(clean(study.question))
    for line in study.conclusion:
        console.print(clean(f"- {line}"))
    console.print(clean(dict(study.facts)["command"]), style="dim")


def print_study(console: Any, study: StudyView) -> None:
    """A study: question, design, tables, and what they say."""
    console.print()
    console.rule(clean(study.title), align="left", characters="=")
    console.print(clean(study.question))
    for name, value in study.facts:
        console.print(clean(f"{name}: {value}"), style="dim")
    print_tables(console, study.tables)
    console.print("\nConclusion", style="bold")
    for line in study.conclusion:
        console.print(clean(line))
    for line in study.statistics:
        console.print(clean(line), style="dim")


def _section(console: Any, section: Section, shared: Collection[str]) -> None:
    console.print()
    console.rule(clean(section.title), align="left", characters="=")
    if section.reason:
        console.print(clean(section.reason))
    for part in section.parts:
        console.print(f"\n{clean(part.title)}. {clean(part.sampler)}", style="bold")
        if part.finding:
            console.print(clean(part.finding))
        print_tables(console, part.tables, shared)
    print_tables(console, section.tables, shared)


def print_notices(console: Any, notices: Sequence[Notice]) -> None:
    """One line for each run that is missing or damaged."""
    if notices:
        console.print(f"\n{len(notices)} notice{'s' * (len(notices) != 1)}", style="bold")
    for notice in notices:
        console.print(f"  {clean(notice.where)}: {clean(notice.text)}")


def print_tables(console: Any, tables: Iterable[Table], without: Collection[str] = ()) -> None:
    """Tables, then their notes, each once, but for those that are printed elsewhere (``without``)."""
    tables = list(tables)
    for table in tables:
        console.print(f"\n{clean(table.title)}", style="bold")
        widths = _widths(table, console.width // 2)
        for columns in _pieces(table, widths, console.width):
            _print_piece(console, table, columns, widths)
    for note in dict.fromkeys(note for table in tables for note in table.all_notes):
        if note not in without:
            console.print(clean(note), style="dim")


def _texts(table: Table, column: int) -> list[str]:
    cells = [clean(row.cells[column].text) for row in table.rows]
    return [clean(table.columns[column].title), *cells]


def _widths(table: Table, most_name: int) -> list[int]:
    """Columns of the terminal that each column of the table takes; long names of rows are cut."""
    from rich.cells import cell_len

    widths = [max(cell_len(text) for text in _texts(table, i)) for i in range(len(table.columns))]
    name = text_column(table)
    return [min(width, MOST_NAME, most_name) if i == name else width for i, width in enumerate(widths)]


def _pieces(table: Table, widths: Sequence[int], width: int) -> list[list[int]]:
    """Column numbers of each piece; all but the first piece start with the rows' names."""
    name = text_column(table)
    pieces: list[list[int]] = [[]]
    used = 0
    for i in range(len(table.columns)):
        if pieces[-1] and used + widths[i] > width and i > name:
            pieces.append([name])
            used = widths[name] + GAP
        pieces[-1].append(i)
        used += widths[i] + GAP
    return pieces


def _print_piece(console: Any, table: Table, columns: Sequence[int], widths: Sequence[int]) -> None:
    titles = Row(tuple(Cell(column.title) for column in table.columns))
    console.print(_line(table, titles, columns, widths), style="underline", no_wrap=True, crop=False)
    for group in table.groups:
        _print_group(console, table, group, columns, widths)


def _print_group(console: Any, table: Table, group: Group, columns: Sequence[int], widths: Sequence[int]) -> None:
    if group.title:
        console.print(clean(group.title), style="italic")
    for row in group.rows:
        line = _line(table, row, columns, widths)
        console.print(line, style="dim" if row.base else "", no_wrap=True, crop=False)


def _line(table: Table, row: Row, columns: Sequence[int], widths: Sequence[int]) -> Any:
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    line = Text()
    for place, i in enumerate(columns):
        text = clean(row.cells[i].text)
        text = set_cell_size(text, widths[i]) if cell_len(text) > widths[i] else text
        padding = " " * (widths[i] - cell_len(text))
        last = place == len(columns) - 1
        body = padding + text if table.columns[i].numeric else text if last else text + padding
        line.append(body, style="bold" if row.cells[i].strong else "")
        line.append("" if last else " " * GAP)
    return line
