"""``report --only`` and ``--columns``: a part of a report, for a page that has room for one table."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.reporting.content import Part, Report, Section
from sdpo_bench.statistics.table import Table, text_column

MAIN, AGAINST, STUDIES = "main", "against", "studies"


def only(report: Report, kinds: Collection[str]) -> Report:
    """The report with these kinds of tables, and the sections that have one.

    Args:
        kinds: values of ``--only``. ``main`` are the tables over all rewards, and those of suites; the others have the
            names of their headings.

    Findings stay with their tables, and notices always stay: a reader must see damage. Figures, grids and the list of
    runs are left out.
    """
    sections = [_section(section, kinds) for section in report.sections]
    return replace(
        report,
        main=tuple(table for table in report.main if _main_kind(table) in kinds),
        sections=tuple(section for section in sections if section.parts or section.tables),
        runs=replace(report.runs, groups=()),
        versions=replace(report.versions, groups=()),
        studies=report.studies if STUDIES in kinds else (),
        run_views=(),
        verdicts=report.verdicts if AGAINST in kinds else (),
    )


def with_columns(report: Report, keys: Sequence[str]) -> Report:
    """The report with these columns of each table, by key, beside the names of its rows.

    A table that has none of them is left out.

    Raises:
        UsageError: no key, or one that no table has.
    """
    if not keys:
        raise UsageError("--columns names no column. Example: --columns letters,mean,gain")
    valid = list(dict.fromkeys(column.key for _, table in report.tables for column in table.columns))
    for key in keys:
        if key not in valid:
            raise UsageError(f"--columns: no table of this report has '{key}'.{nearest(key, valid)}")

    def narrow(tables: tuple[Table, ...]) -> tuple[Table, ...]:
        return tuple(small for table in tables if (small := _narrow(table, keys)).columns)

    sections = [
        replace(
            section,
            tables=narrow(section.tables),
            parts=tuple(replace(part, tables=narrow(part.tables)) for part in section.parts),
        )
        for section in report.sections
    ]
    studies = tuple(replace(study, tables=narrow(study.tables)) for study in report.studies)
    return replace(report, main=narrow(report.main), sections=tuple(sections), studies=studies)


def _narrow(table: Table, keys: Sequence[str]) -> Table:
    chosen = {i for i, column in enumerate(table.columns) if column.key in keys}
    places = sorted({*chosen, text_column(table)}) if chosen else []
    groups = []
    for group in table.groups:
        rows = [replace(row, cells=tuple(row.cells[i] for i in places)) for row in group.rows]
        groups.append(replace(group, rows=tuple(rows)))
    return replace(table, columns=tuple(table.columns[i] for i in places), groups=tuple(groups))


def _section(section: Section, kinds: Collection[str]) -> Section:
    def chosen(tables: tuple[Table, ...]) -> tuple[Table, ...]:
        return tuple(table for table in tables if _kind(table.name.removeprefix(section.name)) in kinds)

    parts = [replace(part, tables=chosen(part.tables), figures=()) for part in section.parts]
    return replace(
        section,
        parts=tuple(_without_finding(part) for part in parts if part.tables),
        tables=chosen(section.tables),
        figures=(),
        grids=(),
        configuration=replace(section.configuration, groups=()),
        omitted="",
    )


def _without_finding(part: Part) -> Part:
    """The finding is about the leaderboard."""
    ranked = any(_kind(table.name).endswith("leaderboard") for table in part.tables)
    return part if ranked else replace(part, finding="")


def _main_kind(table: Table) -> str:
    return AGAINST if table.name.startswith(AGAINST) else MAIN


def _kind(name: str) -> str:
    """``-1-leaderboard-2`` is a ``leaderboard``."""
    return "-".join(word for word in name.split("-") if word and not word.isdigit())
