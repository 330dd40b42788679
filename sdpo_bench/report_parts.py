"""``report --only``: a part of a report, for a page that has room for one table."""

from collections.abc import Collection
from dataclasses import replace

from sdpo_bench.report import Part, Report, Section
from sdpo_bench.tabular import Table

MAIN, AGAINST, STUDIES = "main", "against", "studies"


def only(report: Report, kinds: Collection[str]) -> Report:
    """The report with these kinds of tables, and the sections that have one.

    Args:
        kinds: of what ``--only`` offers. ``main`` are the tables over all rewards, and those of suites; the others
            are called as their headings are.

    Findings stay with their tables and notices stay in any case: what is damaged must be seen. Figures, grids and the
    list of runs go.
    """
    sections = [_section(section, kinds) for section in report.sections]
    return replace(
        report,
        main=tuple(table for table in report.main if _main_kind(table) in kinds),
        sections=tuple(section for section in sections if section.parts or section.tables),
        runs=replace(report.runs, groups=()),
        versions=replace(report.versions, groups=()),
        studies=report.studies if STUDIES in kinds else (),
    )


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
    """The finding is the leaderboard's: which rank is whose."""
    ranked = any(_kind(table.name).endswith("leaderboard") for table in part.tables)
    return part if ranked else replace(part, finding="")


def _main_kind(table: Table) -> str:
    return AGAINST if table.name.startswith(AGAINST) else MAIN


def _kind(name: str) -> str:
    """``-1-leaderboard-2`` is a ``leaderboard``."""
    return "-".join(word for word in name.split("-") if word and not word.isdigit())
