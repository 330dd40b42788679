"""``sdpo-bench show``: what a run was, cost and learnt, from its folder alone. No torch in this process."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from sdpo_bench.cli.options import echo_json
from sdpo_bench.errors import UsageError
from sdpo_bench.results.comparability import sampler_words
from sdpo_bench.results.read_results import Notice, Run, read_run
from sdpo_bench.results.run_list import budget_used, date_of, duration_of
from sdpo_bench.results.run_view import Point, bases_beside, curve_points, files_of, own_settings, score_rows
from sdpo_bench.running.live import print_step_table
from sdpo_bench.runs.adapter import log_changed
from sdpo_bench.runs.run_folder import find_run
from sdpo_bench.system.console_text import clean, print_table
from sdpo_bench.training import collapse_guards
from sdpo_bench.training.bill_text import bill_text

SHOWN_CURVES = ("reward_mean", "reward_std", "kl_to_base", "clip_fraction", "base_clip_fraction", "pictures.diversity")
MOST_POINTS = 12
"""Epochs of a curve on a terminal; ``--json`` has all."""


def show_command(run_name: str, results: Path, as_json: bool) -> None:
    """``sdpo-bench show``.

    Raises:
        UsageError: no such run, a damaged record, or a base model's folder.
    """
    found = read_run(find_run(results, run_name).path)
    if isinstance(found, Notice):
        raise UsageError(f"'{found.where}': {found.text}")
    run, kind = found
    if kind == "base":
        raise UsageError(f"'{run.id}' holds the base model's scores and is no run. Runs: sdpo-bench list runs")
    bases, notices = bases_beside(run)
    scores, points = score_rows(run, bases), list(curve_points(run))
    warnings = [f"{warned.when}: {warned.text}" for warned in collapse_guards.warnings(run.folder)]
    warnings += [changed for changed in [log_changed(run.folder)] if changed]
    warnings += [f"{notice.where}: {notice.text}" for notice in notices]
    if as_json:
        echo_json(_data(run, scores, points, warnings))
        return
    _print(run, scores, points, warnings)


def _data(run: Run, scores: Sequence[dict[str, Any]], points: Sequence[Point], warnings: Sequence[str]) -> Any:
    return {
        "run": run.id,
        "folder": run.folder.path,
        "state": run.state,
        "message": run.message,
        "date": date_of(run),
        "training_seconds": run.seconds,
        "settings": dict(run.settings),
        "own_settings": own_settings(run),
        "bill": run.bill,
        "table": list(scores),
        "curves": [vars(point) for point in points],
        "warnings": list(warnings),
        "files": files_of(run.folder),
    }


def _print(run: Run, scores: Sequence[dict[str, Any]], points: Sequence[Point], warnings: Sequence[str]) -> None:
    told = [run.state, date_of(run), budget_used(run), f"{lasted} of training" if (lasted := duration_of(run)) else ""]
    title = f"{run.id} ({', '.join(text for text in told if text)})"
    print_table(["setting", "value"], [[key, _text(value)] for key, value in own_settings(run).items()], title=title)
    if run.message:
        click.echo(clean(run.message))
    samplers = sorted({row["sampler"] for row in scores})
    for sampler in samplers:
        print_step_table([row for row in scores if row["sampler"] == sampler], run.reward)
        click.echo(f"evaluation sampler: {sampler_words(sampler)}")
    if not samplers:
        click.echo(f"no scores beside a base model yet: sdpo-bench eval {run.id}")
    _print_curves(points)
    if run.bill:
        click.echo(bill_text(_whole(run.bill), run.seconds))
    for text in warnings:
        click.echo(f"warning: {clean(text)}")
    for name, path in files_of(run.folder).items():
        click.echo(f"{name}: {path}")
    click.echo(f"repeat it: sdpo-bench run --config {run.folder.path / 'run.json'}")


def _print_curves(points: Sequence[Point]) -> None:
    """The best-known curves, at epochs that are evenly spread; the last one is always among them."""
    by_epoch: dict[int, dict[str, float]] = {}
    for point in points:
        if point.epoch is not None and point.metric in SHOWN_CURVES:
            by_epoch.setdefault(point.epoch, {})[point.metric] = point.value
    epochs = sorted(by_epoch)
    every = -(-len(epochs) // MOST_POINTS) or 1
    chosen = epochs[::-1][::every][::-1]
    names = [name for name in SHOWN_CURVES if any(name in by_epoch[epoch] for epoch in chosen)]
    rows = [[str(epoch), *(_number(by_epoch[epoch].get(name)) for name in names)] for epoch in chosen]
    if names:
        print_table(["epoch", *names], rows, title=f"training, {len(chosen)} of {len(epochs)} epochs")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _whole(bill: Mapping[str, Any]) -> dict[str, Any]:
    """Counts as whole numbers, as a bill is written."""
    return {key: _whole(value) if isinstance(value, Mapping) else round(value) for key, value in bill.items()}


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
