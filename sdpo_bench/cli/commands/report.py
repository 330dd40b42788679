"""What ``sdpo-bench report`` and ``sdpo-bench compare`` do; imported only when one of them is called. No torch."""

import shutil
import sys
from pathlib import Path

import click

from sdpo_bench.cli.options import echo_json
from sdpo_bench.errors import MissingError, Unwritable, UsageError
from sdpo_bench.ledger import Axis
from sdpo_bench.library.reports import SUFFIXES, render, requested_report
from sdpo_bench.reporting.console import make_console, terminal
from sdpo_bench.reporting.content import Report
from sdpo_bench.reporting.markdown import md
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.output_paths import user_file


def report_command(
    *,
    results: Path,
    select: tuple[str, ...],
    group_by: tuple[str, ...],
    metric: str,
    style: str | None,
    out: Path | None,
    reference: str = "",
    against: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    columns: str | None = None,
    axis: Axis = "images",
    reach: float | None = None,
) -> None:
    """``sdpo-bench report``."""
    if out == Path("-"):
        raise UsageError("--out - names no file. Leave --out out: text forms go to standard output, e.g. --format json")
    style = _style(style, out)
    report = requested_report(
        results,
        select,
        group_by,
        metric,
        reference=reference,
        axis=axis,
        reach=reach,
        against=against,
        only=only,
        columns=columns,
    )
    if style == "all":
        _write_all(report, out or results / "report", results)
    elif out is not None or style == "html":
        target = out or results / "report.html"
        _write(target, render(report, style), results)
        click.echo(str(target))
    elif style == "terminal" and sys.stdout.isatty():
        click.echo(terminal(report, width=shutil.get_terminal_size().columns, colour=True), nl=False, color=True)
    else:
        click.echo(render(report, style), nl=False)
    if report.notices and style != "terminal":
        many = len(report.notices)
        text = f"{many} notice{'s' * (many != 1)} about runs that warned, are missing or damaged; see the report."
        click.echo(text, err=True)


def _style(style: str | None, out: Path | None) -> str:
    """The format asked for, or that of the output file's suffix."""
    named = {suffix: name for name, suffix in SUFFIXES.items()}.get(out.suffix) if out else None
    if style and named and named != style:
        raise UsageError(
            f"--format {style} and --out {out} contradict each other ({out} is {named}). Change one of them."
        )
    if out and not (style or named):
        valid = ", ".join(sorted(SUFFIXES.values()))
        raise UsageError(f"'{out}' does not tell its format (known: {valid}). Add --format, e.g. --format html")
    return style or named or "terminal"


def _write_all(report: Report, folder: Path, results: Path) -> None:
    for style, suffix in SUFFIXES.items():
        target = folder / f"report{suffix}"
        _write(target, render(report, style), results)
        click.echo(str(target))
    if report.figures:
        _write_figures(report, folder / "figures", results)
        _write_first_screen(report, folder, results)


def _write_figures(report: Report, folder: Path, results: Path) -> None:
    """Each figure as an SVG with its data as CSV, and a list of what they show and what draws them again."""
    from sdpo_bench.reporting.html import alone
    from sdpo_bench.reporting.page.exports import figure_csv

    lines = [
        "# Figures",
        "",
        f"Drawn by `{report.command(str(results))}`.",
        "",
        "| file | data | of | what it shows |",
        "|:--|:--|:--|:--|",
    ]
    for title, figure in report.figures:
        target, data = folder / f"{figure.name}.svg", folder / f"{figure.name}.csv"
        if not (drawn := figure.draw()):
            continue
        _write(target, alone(drawn), results)
        _write(data, figure_csv(figure), results)
        click.echo(str(target))
        links = f"[{target.name}]({target.name}) | [{data.name}]({data.name})"
        lines.append(f"| {links} | {md(title)} | {md(figure.caption)} |")
    _write(folder / "README.md", "\n".join([*lines, ""]), results)


def _write_first_screen(report: Report, folder: Path, results: Path) -> None:
    """The answer and its curves of the first setting, as SVG, PNG and CSV."""
    from sdpo_bench.reporting.html import alone
    from sdpo_bench.reporting.page.exports import charts_csv, draw_first_screen, first_charts

    charts = first_charts(report)
    if not charts:
        return
    files: dict[str, bytes | str] = {
        "svg": alone(draw_first_screen(report)),
        "png": draw_first_screen(report, png=True),
        "csv": charts_csv(charts),
    }
    for suffix, content in files.items():
        target = folder / f"first-screen.{suffix}"
        _write(target, content, results)
        click.echo(str(target))


def _write(target: Path, content: bytes | str, results: Path) -> None:
    """In one piece: an old file stays until the new one is whole."""
    target = user_file(target, results)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(target, content)
    except (OSError, Unwritable) as error:
        raise MissingError(f"'{target}' cannot be written: {error.strerror}. Choose another with --out.") from error


def compare_command(*, a: str, b: str, results: Path, select: tuple[str, ...], metric: str, as_json: bool) -> None:
    """``sdpo-bench compare``."""
    from sdpo_bench.library.comparisons import compare_names
    from sdpo_bench.reporting.compare_view import comparison_data, print_comparison

    comparison = compare_names(results, a, b, select, metric)
    if as_json:
        echo_json(comparison_data(comparison))
        return
    tty = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if tty else None
    print_comparison(make_console(width=width, colour=tty), comparison)
