"""Figures as data for the page's script, which draws them in the browser."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sdpo_bench.reporting.page.colours import BASE_COLOUR, COLOURS, DASHES, style_places
from sdpo_bench.statistics.chart import Chart, Dot
from sdpo_bench.statistics.eval_table import BASE
from sdpo_bench.system.console_text import clean

if TYPE_CHECKING:
    from sdpo_bench.reporting.content import Report
    from sdpo_bench.reporting.figures import Figure

DIGITS = 5
"""Significant digits of a point; tables, CSV and JSON have all."""


def page_figures(report: "Report") -> list["Figure"]:
    """Every figure of the page once."""
    return [figure for _, figure in report.figures] + [figure for study in report.studies for figure in study.figures]


def figure_data(figures: Sequence["Figure"]) -> dict[str, Any]:
    """Charts by name of the figure, and the style ``[colour, dash]`` of each label."""
    charts = {}
    for figure in figures:
        if drawn := [_chart(chart) for chart in figure.charts() if chart.series]:
            charts[figure.name] = drawn
    labels = {series["label"] for group in charts.values() for chart in group for series in chart["series"]}
    return {"figures": charts, "styles": {label: style_data(label) for label in sorted(labels)}}


def style_data(label: str) -> list[Any]:
    """Colour and dash lengths of a label."""
    if label == BASE:
        return [BASE_COLOUR, [6, 4]]
    colour, _, dash = style_places(label)
    return [COLOURS[colour], [2 * length for length in DASHES[dash]]]


def _chart(chart: Chart) -> dict[str, Any]:
    series = []
    for line in chart.series:
        columns = {"x": line.x, "y": line.y, "low": line.low, "high": line.high}
        numbers = {key: [_short(value) for value in values] for key, values in columns.items() if len(values)}
        series.append({"label": clean(line.label), **numbers})
    words = {"title": clean(chart.title), "x": clean(chart.x_label), "y": clean(chart.y_label)}
    if chart.note:
        words["note"] = clean(chart.note)
    return {**words, "steps": chart.steps, "zero": chart.zero, "series": series}


def _short(value: float | None) -> float | None:
    return None if value is None or value != value or abs(value) == float("inf") else float(f"{value:.{DIGITS}g}")


def script_data(data: dict[str, Any]) -> Markup:
    """JSON that may stand in a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(data, separators=(",", ":"), sort_keys=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@dataclass(frozen=True)
class DotRow:
    """A row of an interval plot, in percent of its width; ``width`` None: no interval."""

    label: str
    colour: str
    left: float
    width: float | None
    middle: float
    words: str


def dot_rows(dots: Sequence[Dot]) -> tuple[float, list[DotRow]]:
    """Where 0 lies, and the rows, in percent of the width of an axis that has room for all of them and for 0."""
    ends = [0.0] + [end for dot in dots for end in (dot.value, dot.low, dot.high) if end is not None]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        return round(2 + 96 * (value - low) / span, 2)

    rows = []
    for dot in dots:
        left, width, words = place(dot.value), None, f"{dot.value:+.3g}, 1 seed"
        if dot.low is not None and dot.high is not None:
            left, width = place(dot.low), round(place(dot.high) - place(dot.low), 2)
            words = f"{dot.value:+.3g} [{dot.low:.3g}, {dot.high:.3g}]"
        rows.append(DotRow(dot.label, style_data(dot.label)[0], left, width, place(dot.value), words))
    return place(0.0), rows
