"""Figures of learning curves: rises over the base model along the training."""

from collections.abc import Sequence

from sdpo_bench.ledger import Axis
from sdpo_bench.reporting import plots
from sdpo_bench.reporting.figures import Figure, chart_figure, left_out, no_interval
from sdpo_bench.results.equal_reward import CurvePair
from sdpo_bench.results.learning_curves import MEAN, CurvePanel
from sdpo_bench.statistics.chart import Chart
from sdpo_bench.statistics.curves import mean_curve, trace
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


def equal_reward_figure(pairs: Sequence[CurvePair], level: float, name: str) -> Figure:
    """What other curves show while the trained reward rises, a chart a curve."""
    labels = sorted({label for pair in pairs for label in pair.arms})
    shown = labels[: plots.MOST_SERIES]
    trained, more = pairs[0].trained.key, left_out(len(labels) - len(shown))
    return chart_figure(
        name,
        f"Other scores against the rise of {trained.reward} on {trained.split} prompts, which all methods are trained "
        "for: at one place on the horizontal axis they have the same training reward. Each line ends where one of its "
        f"seeds rises no further; bands: {100 * level:g} % intervals over training seeds.{more}",
        lambda: [equal_reward_chart(pair, level, shown) for pair in pairs],
        plots.style_of(shown, BASE),
        columns=min(3, len(pairs)),
        size=(4.4, 3.0),
    )


def equal_reward_chart(pair: CurvePair, level: float, labels: Sequence[str]) -> Chart:
    """Rise of the other curve by rise of the trained one, mean over seeds."""
    trained, other = pair.trained.key, pair.other.key
    series = [trace(label, both, level) for label, both in pair.arms.items() if label in labels]
    return Chart(
        f"{other.reward}, {other.split} prompts",
        f"rise of {trained.reward}, {trained.split} prompts",
        f"rise of {other.reward}",
        series,
        zero=True,
        note=no_interval(series),
    )
