"""``sdpo-bench watch``: the runs of a results folder while they work, read from their folders alone.

Nothing is asked of the processes that do the work, so they may be of a sweep, of another shell or of another machine
that shares the disk.
"""

import math
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from sdpo_bench.errors import MissingError, UsageError
from sdpo_bench.results.read_results import clean_bill
from sdpo_bench.results.suite_records import read_records
from sdpo_bench.running.live import trend
from sdpo_bench.runs.run_folder import KILLED, RunFolder, find_run, run_folders
from sdpo_bench.system.console_text import PLAIN_WIDTH, clean, clock

REFRESH = 2.0  # seconds between two looks
IDLE = 60.0  # seconds without a running run after which the view ends: a sweep's next job may still be loading
RECENT = 5  # epochs that the time left is estimated from
SPARKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 24  # columns
BAR_WIDTH = 20  # columns


@dataclass(frozen=True)
class Standing:
    """Where one run stands.

    Attributes:
        state: as in its status, but ``killed`` where it says running and no process holds the folder.
        message: of the status: what a running run does, or why it failed.
        share: of the training budget, 0 to 1.
        epoch, epochs: completed, and about how many there will be; 0 where it is not known.
        rewards: mean reward by epoch.
        seconds_left: of the training; None where it is not known.
        warnings: texts of its warnings.
    """

    run_id: str
    state: str
    message: str
    share: float
    epoch: int
    epochs: int
    rewards: tuple[float, ...]
    seconds_left: float | None
    warnings: tuple[str, ...]


def standing(run: RunFolder) -> Standing:
    """Read a run's folder; damaged files count as empty."""
    status = run.status_or_unknown
    state = str(status["state"])
    if state == "running" and run.is_abandoned:
        state = "killed"
    rows = run.log()
    rewards = [row["reward_mean"] for row in rows if isinstance(row.get("reward_mean"), int | float)]
    used, amount = _budget(run, rows)
    share = min(1.0, used / amount) if amount else 0.0
    epochs, left = 0, None
    if used and rows:
        epochs = math.ceil(len(rows) * amount / used - 1e-9)
        recent = [row.get("seconds") for row in run.log("timing.jsonl")[-RECENT:]]
        seconds = [x for x in recent if isinstance(x, int | float)]
        left = max(0, epochs - len(rows)) * sum(seconds) / len(seconds) if seconds else None
    warnings = tuple(
        f"epoch {row.get('epoch')}: {row.get('text')}" if row.get("epoch") else str(row.get("text"))
        for row in run.log("warnings.jsonl")
    )
    message = str(status.get("message", ""))
    return Standing(run.run_id, state, message, share, len(rows), epochs, tuple(rewards), left, warnings)


def _budget(run: RunFolder, rows: Sequence[dict[str, Any]]) -> tuple[float, float]:
    """Amount used and amount in all, on the axis of the run's budget; 0 where it cannot be read."""
    with suppress(UsageError, KeyError, TypeError):
        budget = run.record()["config"]["budget"]
        axis, amount = budget["axis"], float(budget["amount"])
        used = run.seconds if axis == "seconds" else clean_bill(rows[-1].get("bill")).get(axis, 0) if rows else 0
        return float(used), amount
    return 0.0, 0.0


def sparkline(values: Sequence[float], width: int = SPARK_WIDTH) -> str:
    """Values from lowest to highest as bars of a character each; of a longer list the means of ``width`` parts."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(width, len(finite))
    bounds = [round(i * len(finite) / count) for i in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in pairwise(bounds)]
    low, high = min(means), max(means)
    if high == low:
        return SPARKS[0] * count
    return "".join(SPARKS[round((mean - low) / (high - low) * (len(SPARKS) - 1))] for mean in means)


def view_lines(standings: Sequence[Standing], where: str, width: int) -> list[str]:
    """The view: counts, then the runs that are not done in detail, at most ``width`` columns wide."""
    states = ("running", "failed", "killed", "interrupted", "unknown", "new", "done")
    counts = {state: sum(one.state == state for one in standings) for state in states}
    text = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines = [f"{where}: {text or 'no runs'}"]
    shown = [one for state in states for one in standings if one.state == state]
    if len(standings) > 1:
        shown = [one for one in shown if one.state != "done"]
    for one in shown:
        lines += _run_lines(one)
    return [clean(line) if len(line) <= width else clean(line)[: width - 3] + "..." for line in lines]


def _run_lines(one: Standing) -> list[str]:
    lines = [f"{one.state:8} {one.run_id}"]
    full = round(BAR_WIDTH * one.share)
    doing = one.message if one.state == "running" and one.message else "training"
    if one.state == "running" or one.epoch:
        of = f" of {one.epochs}" if one.epochs else ""
        left = f"  ETA {clock(one.seconds_left)}" if one.state == "running" and one.seconds_left else ""
        bar = "━" * full + "─" * (BAR_WIDTH - full)
        lines.append(f"  {doing} {bar} {one.share:4.0%}  epoch {one.epoch}{of}{left}")
    if one.rewards:
        lines.append(f"  {trend(dict(enumerate(one.rewards, 1)))}  {sparkline(one.rewards)}")
    if one.state in ("failed", "interrupted") and one.message:
        lines.append(f"  {one.message}")
    if one.state == "killed":
        lines.append(f"  {KILLED}")
    if one.warnings:
        more = f" (and {len(one.warnings) - 1} before it)" if len(one.warnings) > 1 else ""
        lines.append(f"  warning{more}: {one.warnings[-1]}")
    return lines


def watch_command(what: str | None, results: Path, once: bool) -> None:
    """``sdpo-bench watch``: a view every 2 s until nothing runs, or one.

    Raises:
        MissingError: no results folder. UsageError: no such run.
    """
    named_folder = what is not None and (Path(what) / "runs").is_dir()
    folder = Path(what) if what and named_folder else results
    single = find_run(results, what) if what and not named_folder else None
    if single is None and not (folder / "runs").is_dir():
        raise MissingError(f"'{folder}' is not a results folder: it has no runs. Give another: sdpo-bench watch FOLDER")

    def look() -> list[Standing]:
        runs = [single] if single else [run for run in run_folders(folder) if not run.run_id.startswith("base-")]
        return [standing(run) for run in runs]

    def suites() -> list[str]:
        return [] if single else suite_lines(folder)

    where = single.path.parent.parent if single else folder
    if once or not sys.stdout.isatty():
        click.echo("\n".join([*view_lines(look(), str(where), PLAIN_WIDTH), *suites()]))
        return
    _show_live(look, str(where), suites)


def suite_lines(folder: Path) -> list[str]:
    """How much of each suite that is not complete is done; its search may add jobs while it works."""
    lines = []
    for suite in read_records(folder)[0]:
        jobs = {*suite.reported, *suite.tuning}
        done = sum(RunFolder(folder / "runs" / run).state_or_unknown == "done" for run in jobs)
        total = len(jobs) + suite.waiting
        if done < total:
            lines.append(f"suite {clean(suite.name)}: {done} of {total} jobs done")
    return lines


def _show_live(look: Callable[[], list[Standing]], where: str, suites: Callable[[], list[str]] = lambda: []) -> None:
    """Refresh the view in place; the last one stays."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    last_running = None
    with Live(console=console, auto_refresh=False) as live:
        while True:
            standings = look()
            lines = view_lines(standings, f"{where} at {time.strftime('%H:%M:%S')}", console.width - 1)
            lines += suites()
            live.update(Text("\n".join(lines), no_wrap=True), refresh=True)
            if any(one.state == "running" for one in standings):
                last_running = time.monotonic()
            elif _nothing_more(standings, last_running):
                return
            time.sleep(REFRESH)


def _nothing_more(standings: Sequence[Standing], last_running: float | None) -> bool:
    """No run is running, and none is expected to begin: all are done, or none has run for a while."""
    if last_running is None or all(one.state == "done" for one in standings):
        return True
    return time.monotonic() - last_running > IDLE
