"""Figures of a report: from scores and training logs to charts (learning curves: ``curve_figures``).

``plots`` draws them. A figure is a promise to draw: only the formats that show pictures pay for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sdpo_bench.reporting import plots
from sdpo_bench.results.comparability import Arm
from sdpo_bench.results.endpoints import endpoint_words, matrix_at
from sdpo_bench.results.scoreboard import Board, base_spread, difference_to_base
from sdpo_bench.results.training_log import LogNumbers
from sdpo_bench.statistics.chart import Chart, Dot, Series, band
from sdpo_bench.statistics.contrasts import listed
from sdpo_bench.statistics.eval_table import BASE
from sdpo_bench.statistics.intervals import ONE_SEED, crossed_interval, seed_interval

BUDGETS = (("images", "images sampled"), ("reward_calls", "reward calls"), ("denoiser_calls", "denoiser calls"))
DIAGNOSTICS = (
    ("kl_to_base", "KL to the base model"),
    ("clip_fraction", "clip fraction"),
    ("base_clip_fraction", "clip fraction, ratio to the base model"),
    ("gradient_share_by_step", ""),
    ("pictures.contrast", "contrast"),
    ("pictures.saturation", "saturation"),
    ("pictures.sharpness", "sharpness"),
    ("pictures.brightness", "brightness"),
    ("pictures.diversity", "diversity"),
    ("pictures.flat_fraction", "share of flat pictures"),
)

Logs = dict[str, list[LogNumbers]]
"""By label: the training log of each seed."""


@dataclass(frozen=True, eq=False)
class Figure:
    """A figure: name, caption, the function that draws it as SVG (empty without data), and its content for the page."""

    name: str
    caption: str
    draw: Callable[[], bytes]
    wide: bool = False
    charts: Callable[[], Sequence[Chart]] = tuple
    """What the page draws, for figures of lines."""
    dots: tuple[Dot, ...] = ()
    """What the page draws, for rows of intervals."""


def chart_figure(
    name: str,
    caption: str,
    charts: Callable[[], Sequence[Chart]],
    styles: Any,
    *,
    columns: int,
    size: tuple[float, float],
) -> Figure:
    """A figure of lines."""
    read = cache(charts)
    return Figure(
        name,
        caption,
        lambda: plots.draw_charts(read(), styles, columns=columns, size=size),
        wide=columns > 1,
        charts=read,
    )


def board_figures(board: Board, name: str) -> list[Figure]:
    """Scores and gains by step count, interval dots and the profile of one panel."""
    shown = [line.label for line in board.lines][: plots.MOST_SERIES]
    styles = plots.style_of(sorted(shown), BASE)
    more = left_out(len(board.lines) - len(shown))
    seeds = any(len(line.seeds) > 1 for line in board.lines)
    bands = (
        "Bands: 95 % intervals over seeds, left on this prompt set, right for new prompts too."
        if seeds
        else "1 seed, no bands."
    )
    figures = [
        chart_figure(
            f"{name}-steps",
            f"Score and gain over the base model against the number of denoising steps. {bands}{more}",
            lambda: [_score_chart(board, shown), _gain_chart(board, shown)],
            styles,
            columns=2,
            size=(5.4, 3.2),
        )
    ]
    if board.panel.base is not None:
        figures += [_dots(board, shown, styles, name, more), _profile(board, shown, styles, name, more)]
    return figures


def left_out(number: int) -> str:
    """The end of a caption: rows that a figure has no room for."""
    return f" {number} lower rows of the table are not drawn." if number > 0 else ""


def _score_chart(board: Board, shown: Sequence[str]) -> Chart:
    series = []
    rows = [(label, board.panel.arms[label]) for label in shown]
    for label, grid in [*rows, *([(BASE, board.panel.base)] if board.panel.base else [])]:
        matrices = [m for k in grid.steps if (m := matrix_at(grid, board.panel, k)) is not None]
        intervals = [seed_interval(matrix, board.level) for matrix in matrices]
        series.append(_interval_series(label, grid.steps, intervals))
    return Chart("Score", "denoising steps", board.panel.key.reward, series, steps=True, note=no_interval(series))


def _gain_chart(board: Board, shown: Sequence[str]) -> Chart:
    series = []
    for label in shown if board.panel.base is not None else ():
        grid = board.panel.arms[label]
        gains = {k: difference_to_base(board.panel, grid, k) for k in grid.steps}
        intervals = {k: crossed_interval(gain, board.level) for k, gain in gains.items() if gain is not None}
        series.append(_interval_series(label, list(intervals), list(intervals.values())))
    return Chart(
        "Gain over the base model",
        "denoising steps",
        "paired difference",
        series,
        steps=True,
        zero=True,
        note=no_interval(series),
    )


def no_interval(series: Sequence[Series]) -> str:
    """Which methods have a line without a band, since they were trained once."""
    methods = [line.label for line in series if line.label != BASE]
    without = [line.label for line in series if line.label != BASE and not len(line.low)]
    if len(without) == len(methods):
        return ONE_SEED if without else ""
    return f"{ONE_SEED}: {listed(without)}" if without else ""


def _interval_series(label: str, x: Sequence[int], estimates: Sequence[Any]) -> Series:
    whole = all(e.low is not None for e in estimates)
    low, high = ([e.low for e in estimates], [e.high for e in estimates]) if whole else ((), ())
    return Series(label, list(x), [e.value for e in estimates], low, high)


def _dots(board: Board, shown: Sequence[str], styles: Any, name: str, more: str) -> Figure:
    lines = [line for line in board.lines if line.label in shown and line.gain is not None]
    rows = [Dot(line.label, line.gain.value, line.gain.low, line.gain.high) for line in lines if line.gain]
    where = endpoint_words(board.endpoint)
    size = (5.4, 1.15 + 0.34 * max(3, len(rows)))
    return Figure(
        f"{name}-intervals",
        f"Gain over the base model {where} with its 95 % interval over seeds and prompts; hollow: 1 seed, no interval."
        f"{more}",
        lambda: plots.draw_dots(rows, styles, f"Gain over the base model {where}", board.panel.key.reward, size),
        dots=tuple(rows),
    )


def _profile(board: Board, shown: Sequence[str], styles: Any, name: str, more: str) -> Figure:
    return chart_figure(
        f"{name}-profile",
        "Performance profile: share of (seed, prompt) pairs whose gain over the base model exceeds a threshold, in "
        f"standard deviations of the base model's images. The higher curve is better.{more}",
        lambda: [_profile_chart(board, shown)],
        styles,
        columns=1,
        size=(5.4, 2.6),
    )


def _profile_chart(board: Board, shown: Sequence[str]) -> Chart:
    panel = board.panel
    spread = base_spread(panel, board.endpoint)
    gains = {label: difference_to_base(panel, panel.arms[label], board.endpoint) for label in shown}
    values = {label: gain.values.ravel() / spread for label, gain in gains.items() if gain is not None and spread}
    series = []
    if values:
        everything = np.concatenate(list(values.values()))
        grid = np.linspace(everything.min(), everything.max(), 201)
        for label, own in values.items():
            above = 1 - np.searchsorted(np.sort(own), grid, side="right") / own.size
            series.append(Series(label, grid.tolist(), above.tolist()))
    return Chart("Performance profile", "gain, base model's standard deviations", "share above", series)


# -- training ------------------------------------------------------------------------------------------------


def training_figures(arms: Sequence[Arm], name: str) -> list[Figure]:
    """Reward against cost, and diagnostics, from the training logs of one setting."""
    shown = [arm for arm in arms if arm.done][: plots.MOST_SERIES]
    if not shown:
        return []
    more = left_out(sum(bool(arm.done) for arm in arms) - len(shown))
    logs: Logs = {}

    def curves() -> Logs:
        if not logs:  # both figures read the same files
            logs.update({arm.label: [run.held_log for run in arm.done] for arm in shown})
        return logs

    styles = plots.style_of([arm.label for arm in shown], BASE)
    return [
        chart_figure(
            f"{name}-cost",
            "Mean reward of the sampled training images against three ways of counting the cost. Line: mean over "
            f"seeds; band: lowest to highest seed.{more}",
            lambda: _cost_charts(curves()),
            styles,
            columns=3,
            size=(3.6, 2.8),
        ),
        chart_figure(
            f"{name}-distance",
            "Mean reward of the sampled training images against the distance from the base model, the square root of "
            "the KL divergence (nats per latent element, all steps): what a method gains for how far it moves. Each "
            f"point is an eighth of the training, mean over seeds.{more}",
            lambda: [_distance_chart(curves())],
            styles,
            columns=1,
            size=(5.4, 3.2),
        ),
        chart_figure(
            f"{name}-diagnostics",
            "Training diagnostics: mean over seeds, band from lowest to highest seed; the gradient share is that of "
            f"the last epoch.{more}",
            lambda: _diagnostic_charts(curves()),
            styles,
            columns=3,
            size=(3.6, 2.2),
        ),
    ]


def _cost_charts(logs: Logs) -> list[Chart]:
    return [
        Chart(f"Against {words}", words, "" if i else "mean training reward", _log_series(logs, "reward_mean", axis))
        for i, (axis, words) in enumerate(BUDGETS)
    ]


def _distance_chart(logs: Logs) -> Chart:
    """Up to the shortest seed: one that moves faster must not stand for the others further out."""
    series = []
    for label, runs in logs.items():
        curves = [log.points("kl_to_base", "reward_mean") for log in runs]
        epochs = min((len(curve) for curve in curves), default=0)
        if epochs:
            mean = np.mean([curve[:epochs] for curve in curves], axis=0)
            kl, reward = np.array([block.mean(0) for block in np.array_split(mean, min(8, epochs))]).T
            series.append(Series(label, np.sqrt(kl.clip(0)).tolist(), reward.tolist()))
    return Chart("Against distance", "square root of the KL to the base model", "mean training reward", series)


def _diagnostic_charts(logs: Logs) -> list[Chart]:
    charts = []
    for key, words in DIAGNOSTICS:
        if key == "gradient_share_by_step":
            charts.append(Chart("gradient share by step", "denoising step, 0 is the noisiest", "", _share_series(logs)))
        else:
            charts.append(Chart(words, "images sampled", "", _log_series(logs, key, "images")))
    return [chart for chart in charts if chart.series]


def _log_series(logs: Logs, key: str, axis: str) -> list[Series]:
    lines = []
    for label, runs in logs.items():
        curves = [points.T.tolist() for log in runs if len(points := log.points(f"bill.{axis}", key))]
        if not curves:
            continue
        x, y = band(curves)
        if len(x):
            low, high = (y.min(0).tolist(), y.max(0).tolist()) if len(curves) > 1 else ((), ())
            lines.append(Series(label, x.tolist(), y.mean(0).tolist(), low, high))
    return lines


def _share_series(logs: Logs) -> list[Series]:
    lines = []
    for label, runs in logs.items():
        shares = [log.last.get("gradient_share_by_step") for log in runs]
        shares = [share for share in shares if isinstance(share, list)]
        if shares:
            mean = np.mean(np.asarray(shares, dtype=float), axis=0)
            lines.append(Series(label, list(range(len(mean))), mean.tolist()))
    return lines
