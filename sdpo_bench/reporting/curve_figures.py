"""Figures of learning curves: rises over the base model along the training."""

from collections.abc import Sequence

from sdpo_bench.ledger import Axis
from sdpo_bench.reporting import plots
from sdpo_bench.reporting.figures import Figure, chart_figure, left_out, no_interval
from sdpo_bench.results.learning_curves import MEAN, CurvePanel
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.curves import mean_curve
from sdpo_bench.statistics.eval_table import BASE

CURVE_AXES: tuple[tuple[Axis, str], ...] = (
    ("images", "images sampled"),
    ("denoiser_calls", "denoiser calls"),
    ("optimiser_steps", "optimiser steps"),
    ("seconds", "seconds of training"),
)


def curve_figure(panel: CurvePanel, level: float, name: str) -> Figure:
    """The learning curves of a panel, mean over step counts, against each way of counting the cost."""
    shown = list(panel.arms)[: plots.MOST_SERIES]
    several = any(len(curves[MEAN]) > 1 for curves in panel.arms.values())
    bands = f"bands: {100 * level:g} % intervals over training seeds" if several else "1 seed, no bands"
    return chart_figure(
        name,
        f"Learning curves, {panel.key.split} prompts: rise of {panel.key.reward} over the base model, mean over step "
        f"counts, against the cost of training; {bands}.{left_out(len(panel.arms) - len(shown))}",
        lambda: curve_charts(panel, MEAN, level, shown),
        plots.style_of(shown, BASE),
        columns=2,
        size=(5.4, 3.0),
    )


def curve_charts(panel: CurvePanel, steps: int, level: float, labels: Sequence[str]) -> list[Chart]:
    """Learning curves at a step count, a chart for each way of counting the cost."""
    charts = []
    for axis, words in CURVE_AXES:
        series = [mean_curve(label, panel.arms[label][steps], axis, level) for label in labels]
        note = no_interval(series)
        charts.append(Chart(f"Against {words}", words, f"rise of {panel.key.reward}", series, zero=True, note=note))
    return charts
