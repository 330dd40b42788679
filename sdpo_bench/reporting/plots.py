"""Drawing: charts of lines and rows of intervals, as SVG bytes that are equal for equal data.

Colours of text and rules are fixed, known values, so that a page can replace them for a dark background
(:data:`THEME`). Lettering is drawn as outlines: it looks alike everywhere and names from outside stay harmless.
"""

import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from types import ModuleType
from typing import Any

from sdpo_bench.reporting.page.colours import BASE_COLOUR, COLOURS, DASHES, MARKERS, style_places
from sdpo_bench.statistics.chart import Chart, Dot
from sdpo_bench.system.console_text import clean

INK, MUTED, RULE = "#1b2733", "#5f6c79", "#d4dae0"
THEME = {"ink": INK, "muted": MUTED, "rule": RULE}
MOST_SERIES = 40
LEAST_TREND = 3
"""Points of a training from which on a line joins them: two show no trend."""
MOST_LABEL = 40  # characters
SETTINGS = {
    "svg.hashsalt": "sdpo-bench",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.unicode_minus": True,
    "path.simplify": True,
    "axes.formatter.useoffset": False,
}


def style_of(labels: Sequence[str], base: str) -> dict[str, dict[str, Any]]:
    """Colour, marker and dash of each label, the same in every figure of every report."""
    styles: dict[str, dict[str, Any]] = {base: {"color": BASE_COLOUR, "linestyle": "--", "marker": "o"}}
    for label in labels:
        if label != base:
            colour, marker, dash = style_places(label)
            line = (0, DASHES[dash]) if DASHES[dash] else "-"
            styles[label] = {"color": COLOURS[colour], "marker": MARKERS[marker], "linestyle": line}
    return styles


def draw_charts(
    charts: Sequence[Chart],
    styles: Mapping[str, dict[str, Any]],
    *,
    columns: int,
    size: tuple[float, float],
    title: str = "",
    png: bool = False,
) -> bytes:
    """Charts side by side with one legend below; empty where no chart has a line.

    Args:
        size: width and height of one chart in inches.
        title: a sentence above all charts.
        png: a PNG on white at 200 dots an inch instead of an SVG.
    """
    if not any(chart.series for chart in charts):
        return b""
    rows = -(-len(charts) // columns)
    drawn = {series.label for chart in charts for series in chart.series}
    labels = [label for label in styles if label in drawn]
    legend_columns = _legend_columns(labels, size[0] * columns)

    def fill(figure: Any) -> None:
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for ax, chart in zip(axes, charts):
            _draw_chart(ax, chart, styles)
        for ax in axes[len(charts) :]:
            ax.set_visible(False)
        _legend(figure, labels, styles, legend_columns)
        if title:
            words = textwrap.fill(clean(title).replace("$", r"\$"), int(12.5 * size[0] * columns))
            figure.suptitle(words, x=0.01, ha="left", fontsize=10)

    legend_rows = -(-len(labels) // legend_columns)
    return _drawn(fill, (size[0] * columns, size[1] * rows + 0.15 + 0.2 * legend_rows), png=png)


def _draw_chart(ax: Any, chart: Chart, styles: Mapping[str, dict[str, Any]]) -> None:
    alpha = 0.16 if len(chart.series) <= 7 else 0.05  # many bands on top of each other hide the lines
    for series in chart.series:
        style = dict(styles[series.label])
        few = len(series.x) <= 24
        if not chart.steps and len(series.x) < LEAST_TREND:
            style["linestyle"] = "none"
        ax.plot(series.x, series.y, markersize=4.5 if few else 0, **style)
        if len(series.low):
            ax.fill_between(series.x, series.low, series.high, color=style["color"], alpha=alpha, linewidth=0)
    if chart.zero:
        ax.axhline(0, color=MUTED, linewidth=0.9)
    if chart.note:
        ax.set_title(safe(chart.note), loc="right", fontsize=8, fontweight="normal", color=MUTED)
    ax.set(title=chart.title, xlabel=chart.x_label, ylabel=safe(chart.y_label))
    if chart.steps:
        ticks = sorted({x for series in chart.series for x in series.x})
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.minorticks_off()
    else:
        ax.xaxis.set_major_locator(_locator(5))
        ax.xaxis.set_major_formatter(lambda value, _: _short(value))
    ax.yaxis.set_major_locator(_locator(6))


def _locator(most: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(most)


def _short(value: float) -> str:
    """1500 -> 1.5k, 2000000 -> 2M."""
    for limit, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g}{suffix}"
    return f"{value:g}"


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """As many as fit side by side in ``width`` inches."""
    longest = max((len(safe(label)) for label in labels), default=0)
    return max(1, min(len(labels), int(width / (0.55 + 0.075 * longest))))


def _legend(figure: Any, labels: Sequence[str], styles: Mapping[str, dict[str, Any]], columns: int) -> None:
    from matplotlib.lines import Line2D

    if not labels:
        return
    handles = [Line2D([], [], markersize=4.5, **styles[label]) for label in labels]
    figure.legend(handles, [safe(label) for label in labels], loc="outside lower left", ncols=columns, fontsize=9)


def draw_dots(
    rows: Sequence[Dot], styles: Mapping[str, dict[str, Any]], title: str, x_label: str, size: tuple[float, float]
) -> bytes:
    """Values with their intervals, one below the other; a hollow dot has no interval."""

    def fill(figure: Any) -> None:
        ax = figure.subplots()
        for y, row in enumerate(reversed(rows)):
            colour = styles[row.label]["color"]
            if row.low is not None and row.high is not None:
                ax.plot([row.low, row.high], [y, y], color=colour, linewidth=2.4, solid_capstyle="round")
            hollow = row.low is None
            ax.plot([row.value], [y], "o", color=colour, markersize=7, markerfacecolor="none" if hollow else colour)
        ax.axvline(0, color=MUTED, linewidth=0.9)
        ax.set_yticks(range(len(rows)), [safe(row.label) for row in reversed(rows)])
        ax.tick_params(axis="y", length=0, labelcolor=INK)
        ax.set_ylim(-0.6, len(rows) - 0.4)
        ax.grid(visible=False, axis="y")
        ax.xaxis.set_major_locator(_locator(6))
        ax.set(xlabel=safe(x_label))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")  # over the names too: it fits

    return _drawn(fill, size)


def safe(text: str) -> str:
    """A label that mathtext will not read as a formula, without control characters, short enough to leave room."""
    short = text if len(text) <= MOST_LABEL else text[: MOST_LABEL - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return clean(short).replace("$", r"\$")


def _drawn(fill: Callable[[Any], None], size: tuple[float, float], *, png: bool = False) -> bytes:
    """An SVG or PNG without date or random identifiers."""
    import warnings

    matplotlib = _matplotlib()
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # figures are the same whatever the user's matplotlibrc says
        matplotlib.rcParams.update(SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        fill(figure)
        stream = BytesIO()
        if png:
            figure.savefig(stream, format="png", dpi=200, facecolor="white", metadata={"Software": None})
            return stream.getvalue()
        canvas = FigureCanvasSVG(figure)
        canvas.print_svg(stream, metadata={"Date": None, "Creator": None})  # savefig would draw everything twice
    return stream.getvalue()


def _matplotlib() -> ModuleType:
    """matplotlib, without the backend that a notebook hands to its children: it may not exist in this environment."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib
