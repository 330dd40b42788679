"""A study's record as a part of a report: its texts, tables and figures, without the study's code."""

from dataclasses import dataclass, replace

from sdpo_bench.reporting import plots
from sdpo_bench.reporting.figures import Figure, chart_figure
from sdpo_bench.results.study_findings import Plot
from sdpo_bench.results.study_record import StudyRecord
from sdpo_bench.statistics import table as t
from sdpo_bench.statistics.eval_table import BASE


@dataclass(frozen=True)
class StudyView:
    """One study as every format shows it."""

    name: str
    title: str
    question: str
    conclusion: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    statistics: tuple[str, ...]
    tables: tuple[t.Table, ...]
    figures: tuple[Figure, ...]


def study_view(record: StudyRecord) -> StudyView:
    """The record in the terms of a report."""
    size = "" if record.variant == "default" else f" ({record.variant})"
    runs = ", ".join(f"{count} {state}" for state, count in sorted(record.runs.items()))
    version = record.versions.get("sdpo-bench")
    origin = [("command", record.command), *([("trainings", runs)] if runs else [])]
    if version:
        origin.append(("recorded with", f"sdpo-bench {version}"))
    return StudyView(
        record.slug,
        f"Study: {record.study}{size}",
        record.question,
        (*_caution(record), *record.findings.conclusion),
        (*record.facts, *origin),
        record.statistics,
        tuple(replace(table, name=f"{record.slug}-{table.name}") for table in record.findings.tables),
        tuple(_figure(record.slug, plot) for plot in record.findings.plots),
    )


def _caution(record: StudyRecord) -> tuple[str, ...]:
    failed, trained = record.unfinished, sum(record.runs.values())
    return (f"{failed} of {trained} trainings failed: what follows rests on the others alone.",) if failed else ()


def _figure(slug: str, plot: Plot) -> Figure:
    labels = list(dict.fromkeys(series.label for chart in plot.charts for series in chart.series))
    styles = plots.style_of(labels, BASE)
    name = f"{slug}-{plot.name}"
    return chart_figure(name, plot.caption, lambda: plot.charts, styles, columns=plot.columns, size=plot.size)
