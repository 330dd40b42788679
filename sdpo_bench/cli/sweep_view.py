"""What a person sees of a sweep: the plan with its cost, a live table while it works, the failures at the end.

Progress goes to standard error, results to standard output. The live table reads the run folders, so it needs no
channel to the processes that do the work, wherever they are.
"""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from sdpo_bench.estimates.time_estimate import Work
from sdpo_bench.results.read_results import clean_bill, last_line
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.sweep.plan import Job, Plan
from sdpo_bench.sweep.scheduler import Progress

COSTS = ("images", "denoiser calls", "reward calls", "optimiser steps")


def duration(seconds: float | None) -> str:
    """``1 h 05 min``, ``7 min``, ``12 s``; a dash where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def plan_table(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Columns and one row a job."""
    variants = any(job.variant for job in plan.jobs)
    tuned = any(job.role == "tuning" for job in plan.jobs)
    columns = ["method", "reward", *(["variant"] if variants else []), "seed", *(["for"] if tuned else []), "state"]
    rows = []
    for job in plan.jobs:
        words = [job.method, job.reward, *([job.variant] if variants else []), str(job.seed)]
        words += [job.role] if tuned else []
        rows.append([*words, job.state, *_costs(job.work), duration(job.seconds)])
    return [*columns, *COSTS, "time"], rows


def _costs(work: Work | None) -> list[str]:
    if work is None:
        return ["-"] * len(COSTS)
    return [f"{n:,}" for n in billed(work)]


def billed(work: Work) -> tuple[int, int, int, int]:
    """The training bill, in the order of :data:`COSTS`."""
    return (work.images, work.denoiser_calls, work.reward_calls, work.optimiser_steps)


def totals(jobs: Sequence[Job]) -> dict[str, Any]:
    """Sums over jobs; a sum is None where a part of it is not known."""
    works = [job.work for job in jobs]
    times = [job.seconds for job in jobs]
    known = [work for work in works if work is not None]
    total = sum(known, Work()) if len(known) == len(works) else None
    counts = (
        dict(zip(COSTS, (total.images, total.denoiser_calls, total.reward_calls, total.optimiser_steps)))
        if total
        else {}
    )
    seconds = [t for t in times if t is not None]
    return {
        **{key.replace(" ", "_"): counts.get(key) for key in COSTS},
        "evaluation_denoiser_calls": total.outside_forward if total else None,
        "seconds": sum(seconds) if len(seconds) == len(times) else None,
    }


def plan_words(plan: Plan, jobs: int, why_no_time: str) -> list[str]:
    """What stands below the plan: counts, what is left to pay, how the time was estimated."""
    states = ("new", "done", "unfinished", "failed", "waiting")
    counted = ", ".join(f"{plan.count(state)} {state}" for state in states if plan.count(state))
    left = [job for job in plan.jobs if job.state != "done"]
    sums = totals(left)
    lines = [f"{len(plan.jobs)} jobs: {counted}"]
    costs = [f"{sums[key.replace(' ', '_')]:,} {key}" for key in COSTS if sums[key.replace(" ", "_")] is not None]
    if left and costs:
        lines.append(f"left to do (unfinished jobs counted whole): {', '.join(costs)}")
        lines.append(f"besides, {sums['evaluation_denoiser_calls']:,} denoiser calls to judge the checkpoints")
    if left and sums["seconds"] is not None:
        wall = sums["seconds"] / jobs
        lines.append(
            f"time: about {duration(sums['seconds'])} of work, {duration(wall)} with {jobs} at a time (measured here)"
        )
    elif left:
        lines.append(f"time: not known{': ' + why_no_time if why_no_time else ''}")
    return lines


def plan_data(plan: Plan) -> dict[str, Any]:
    """The plan for ``--json``."""
    left = [job for job in plan.jobs if job.state != "done"]
    return {
        "suite": plan.suite.name,
        "cells": [job_data(job) for job in plan.jobs],
        "left": totals(left),
        "choices": [
            {"group": list(c.group), "chosen": dict(c.chosen.settings) if c.chosen else None, "cost": dict(c.cost)}
            for c in plan.choices
        ],
    }


def job_data(job: Job) -> dict[str, Any]:
    """One job for ``--json``."""
    work = job.work
    return {
        "run": job.run_id,
        "method": job.method,
        "reward": job.reward,
        "model": job.model,
        "variant": job.variant,
        "seed": job.seed,
        "role": job.role,
        "state": job.state,
        "message": job.message,
        "images": work.images if work else None,
        "denoiser_calls": work.denoiser_calls if work else None,
        "reward_calls": work.reward_calls if work else None,
        "optimiser_steps": work.optimiser_steps if work else None,
        "evaluation_denoiser_calls": work.outside_forward if work else None,
        "seconds": job.seconds,
    }


class Tally(NamedTuple):
    """Every job of a sweep, once."""

    done: list[Job]
    failed: list[Job]
    """In this sweep, with the reasons."""
    left: list[Job]


def tally(progress: Progress, plan: Plan) -> Tally:
    """How the sweep's jobs stand, in a plan that it has ``told``."""
    counts = Tally([], [], [])
    keys = {job.key for job in progress.plan.jobs}
    for job in plan.jobs:
        if job.key in keys:
            failed = job.state == "failed" and progress.outcomes.get(job.key) == "failed"
            (counts.done if job.state == "done" else counts.failed if failed else counts.left).append(job)
    return counts


class SweepView:
    """Live table on a terminal, one line an event elsewhere; use as a context manager."""

    def __init__(self) -> None:
        self._live: Any = None
        self._started = time.monotonic()
        self._shown = 0.0

    def __enter__(self) -> "SweepView":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self, progress: Progress, line: str) -> None:
        """Show what happened and where the sweep stands."""
        ended = progress.count("done") + progress.count("elsewhere") + progress.count("failed")
        if line and self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        elif line:
            print(f"[{ended}/{len(progress.todo)}] {line}", file=sys.stderr, flush=True)
        now = time.monotonic()
        if self._live is not None and (line or now - self._shown > 1):
            self._shown = now
            self._live.update(self._table(progress, ended), refresh=True)

    def _table(self, progress: Progress, ended: int) -> Any:
        from rich.markup import escape
        from rich.table import Table

        title = f"{progress.plan.suite.name}: {ended} of {len(progress.todo)} jobs ended"
        title += f", {progress.count('failed')} failed, {duration(time.monotonic() - self._started)}"
        title += f", {progress.ending}" if progress.ending else ""
        table = Table(title=escape(title), title_justify="left")
        for name in ("running", "phase", "budget used", "reward", "for"):
            table.add_column(name)
        jobs = progress.jobs
        for key, since in progress.running.items():
            row = [jobs[key].label, *_live_state(jobs[key], progress.plan), duration(time.monotonic() - since)]
            table.add_row(*(escape(text) for text in row))
        for key in sorted(progress.locked):
            table.add_row(escape(jobs[key].label), "in another sweep", "", "", "")
        return table


def _live_state(job: Job, plan: Plan) -> list[str]:
    """Phase, share of the budget and last mean reward, from the run folder."""
    folder = RunFolder(plan.out / "runs" / job.run_id)
    status = folder.known_status
    phase = str(status.get("message", "")) if status.get("state") == "running" else "starting"
    row = last_line(folder.path / "train.jsonl") or {}
    used = clean_bill(row.get("bill")).get(str(job.settings["budget.axis"]))
    amount = job.settings["budget.amount"]
    share = f"{100 * used / amount:.0f} %" if isinstance(used, int | float) and used else "-"
    reward = row.get("reward_mean")
    return [phase or "-", share, f"{reward:.4g}" if isinstance(reward, int | float) else "-"]
