"""Files for papers and README: the data of a figure as CSV, and the first screen's curves with its sentence."""

import csv
import io
from collections.abc import Sequence

from sdpo_bench.reporting import plots
from sdpo_bench.reporting.content import Report
from sdpo_bench.reporting.figures import Figure
from sdpo_bench.reporting.markdown import csv_field
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.eval_table import BASE


def figure_csv(figure: Figure) -> str:
    """Every point of a figure, in full precision."""
    if not figure.dots:
        return charts_csv(figure.charts())
    rows = [("", dot.label, "", dot.value, dot.low, dot.high) for dot in figure.dots]
    return _csv(rows)


def charts_csv(charts: Sequence[Chart]) -> str:
    """One line a point: chart, line, x, y and its interval."""
    rows = []
    for chart in charts:
        for line in chart.series:
            for i, (x, y) in enumerate(zip(line.x, line.y)):
                low, high = (line.low[i], line.high[i]) if len(line.low) else (None, None)
                rows.append((chart.title, line.label, x, y, low, high))
    return _csv(rows)


def _csv(rows: Sequence[tuple[object, ...]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("chart", "line", "x", "y", "low", "high"))
    writer.writerows([csv_field(value) for value in row] for row in rows)
    return stream.getvalue()


def first_charts(report: Report) -> list[Chart]:
    """The step curve, and the learning curve where runs measured one, of the first setting."""
    answer = report.sections[0].answer if report.sections else None
    charts: list[Chart] = []
    if answer and answer.steps:
        with_lines = [chart for chart in answer.steps.charts() if chart.series]
        charts += with_lines[-1:]
    if answer and answer.learning:
        charts += answer.learning.charts()[:1]
    return charts


def draw_first_screen(report: Report, *, png: bool = False) -> bytes:
    """The first setting's sentence above its curves, as SVG or PNG."""
    section, charts = report.sections[0], first_charts(report)
    sentence = section.answer.sentence if section.answer else ""
    styles = plots.style_of(sorted({line.label for chart in charts for line in chart.series}), BASE)
    columns, title = len(charts), f"{section.title}: {sentence}"
    size = (5.4, 3.6) if columns > 1 else (7.2, 3.9)
    return plots.draw_charts(charts, styles, columns=columns, size=size, title=title, png=png)
