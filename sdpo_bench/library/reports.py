"""``sdpo_bench.report``, and what the ``report`` command shares with it. No torch here."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdpo_bench.errors import UsageError, nearest
from sdpo_bench.ledger import Axis
from sdpo_bench.reporting.assemble import Request, build_report, results_sides
from sdpo_bench.reporting.console import terminal
from sdpo_bench.reporting.content import Report
from sdpo_bench.reporting.markdown import as_csv, as_json, latex, markdown
from sdpo_bench.reporting.report_parts import only as select_tables
from sdpo_bench.reporting.report_parts import with_columns
from sdpo_bench.reporting.tables.against_sides import Side, published_side
from sdpo_bench.results.endpoints import parse_metric
from sdpo_bench.results.published_numbers import PAPER, paper, read_published
from sdpo_bench.results.read_results import load_results
from sdpo_bench.results.select_runs import parse_select
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.output_paths import user_file

SUFFIXES = {"terminal": ".txt", "markdown": ".md", "csv": ".csv", "latex": ".tex", "json": ".json", "html": ".html"}


@dataclass(frozen=True)
class ReportText:
    """A report in one format; a notebook shows Markdown and HTML as such.

    Attributes:
        text: the whole report.
        style: its format.
        path: the file that it was written to; None: to none.
    """

    text: str
    style: str
    path: Path | None = None

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str | None:
        return self.text if self.style == "markdown" else None

    def _repr_html_(self) -> str | None:
        return self.text if self.style == "html" else None


def report(
    results: str | Path = "results",
    *,
    style: str = "markdown",
    out: str | Path | None = None,
    select: Sequence[str] = (),
    group_by: Sequence[str] = (),
    metric: str | int = "mean",
    reference: str = "",
    axis: Axis = "images",
    reach: float | None = None,
    against: Sequence[str] = (),
    only: Sequence[str] = (),
    columns: str | None = None,
) -> ReportText:
    """Tables and figures of a results folder, as ``sdpo-bench report``.

    Args:
        style: ``terminal``, ``markdown``, ``csv``, ``latex``, ``json`` or ``html`` (figures are in HTML only).
        out: a file to write as well.
        select, group_by, metric, reference, axis, reach, against, only, columns: as the options of the command.

    Raises:
        UsageError: an unknown format, or a selection or metric that fits nothing. MissingError: the file cannot be
            written.
    """
    if style not in SUFFIXES:
        raise UsageError(f"unknown format '{style}'.{nearest(style, SUFFIXES)}")
    found = requested_report(
        Path(results),
        select,
        tuple(group_by),
        str(metric),
        reference=reference,
        axis=axis,
        reach=reach,
        against=against,
        only=only,
        columns=columns,
    )
    text, path = render(found, style), Path(out) if out is not None else None
    if path is not None:
        target = user_file(path, Path(results))
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, text)
    return ReportText(text, style, path)


def requested_report(
    results: Path,
    select: Sequence[str],
    group_by: tuple[str, ...],
    metric: str,
    *,
    reference: str,
    axis: Axis,
    reach: float | None,
    against: Sequence[str],
    only: Sequence[str],
    columns: str | None,
) -> Report:
    """The report that the options ask for.

    Raises:
        UsageError: a selection, table, column or metric that fits nothing, or a level that is no rise.
    """
    if reach is not None and not 0 < reach < float("inf"):
        raise UsageError(f"--reach {reach}: a rise over the base model is a positive number. Example: --reach 0.1")
    options = report_options(select, group_by, metric, reference=reference, axis=axis, reach=reach, against=against)
    sides = tuple(side for name in against for side in find_sides_against(name))
    request = Request(
        parse_select(select),
        group_by,
        parse_metric(metric),
        axis=axis,
        reach=reach,
        reference=reference,
        against=sides,
    )
    found = replace(build_report(load_results(results), request), options=options)
    if only:
        found = select_tables(found, only)
    if columns is not None:
        found = with_columns(found, [key.strip() for key in columns.split(",") if key.strip()])
    return found


def report_options(
    select: Sequence[str],
    group_by: Sequence[str],
    metric: str,
    *,
    reference: str,
    axis: str,
    reach: float | None,
    against: Sequence[str],
) -> str:
    """The options that shape the figures of a report, as typed; those with their default value are left out."""
    words: list[str] = []
    for option, values in (("--select", select), ("--group-by", group_by), ("--against", against)):
        words += [word for value in values for word in (option, value)]
    single = {"--metric": metric, "--reference": reference, "--axis": axis, "--reach": reach}
    default = {"--metric": "mean", "--reference": "", "--axis": "images", "--reach": None}
    words += [word for option, value in single.items() if value != default[option] for word in (option, str(value))]
    return shlex.join(words)


def render(report: Report, style: str) -> str:
    """The report in one format; imports only what that format needs."""
    if style == "html":
        from sdpo_bench.reporting.html import html

        return html(report)
    renderers: dict[str, Callable[[Report], str]] = {
        "terminal": terminal,
        "markdown": markdown,
        "csv": as_csv,
        "latex": latex,
        "json": as_json,
    }
    return renderers[style](report)


def find_sides_against(name: str) -> list[Side]:
    """What ``--against`` names: the shipped published numbers, a file of such numbers, or another results folder.

    Raises:
        UsageError: none of these, or there is nothing in it to compare with.
    """
    path = Path(name)
    if name == PAPER:
        return [published_side(published, PAPER) for published in paper()]
    if path.suffix == ".toml":
        return [published_side(read_published(path), path.stem)]
    if path.is_dir():
        if sides := results_sides(load_results(path), name):
            return sides
        raise UsageError(f"--against '{name}': none of its runs has scores and a base model. sdpo-bench eval adds them")
    raise UsageError(
        f"--against '{name}' is no results folder and no .toml file of published numbers. Valid: {PAPER}, FILE.toml, "
        "a results folder. Example: --against paper"
    )
