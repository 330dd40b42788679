"""Views of a sweep: the plan with its cost, and a live table while it works.

Progress goes to standard error, results to standard output. The live table reads the run folders, so it needs no
channel to the processes that do the work, wherever they are.
"""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from sdpo_bench.estimates.time_estimate import Work
from sdpo_bench.ledger import limit_text
from sdpo_bench.results.comparability import settings_text, shown
from sdpo_bench.results.read_results import clean_bill
from sdpo_bench.results.training_log import last_line
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.sweep.later_runs import most_by_extension
from sdpo_bench.sweep.plan import Job, Plan
from sdpo_bench.sweep.scheduler import Progress
from sdpo_bench.sweep.search import Round
from sdpo_bench.sweep.tuning import BILL, Choice, edge_of_values
from sdpo_bench.system.console_text import duration


def costs_data(work: Work | None) -> dict[str, int | None]:
    """Training bill and evaluation of some work; all None where the budget is a time."""
    data = {key: getattr(work, key) if work else None for key in BILL}
    return data | {"evaluation_denoiser_calls": work.outside_forward if work else None}


def plan_table(plan: Plan) -> tuple[list[str], list[list[str]]]:
    """Columns and one row a job."""
    models = len({job.model for job in plan.jobs}) > 1
    variants = any(job.variant for job in plan.jobs)
    tuned = any(job.role == "tuning" for job in plan.jobs)
    columns = [
        "method",
        "reward",
        *(["model"] if models else []),
        *(["variant"] if variants else []),
        "seed",
        *(["for"] if tuned else []),
        "state",
    ]
    rows = []
    for job in plan.jobs:
        texts = [job.method, job.reward, *([job.model] if models else [])]
        texts += [*([job.variant] if variants else []), str(job.seed)]
        texts += [_purpose(plan, job)] if tuned else []
        costs = [f"{getattr(job.work, key):,}" if job.work else "-" for key in BILL]
        rows.append([*texts, job.state, *costs, duration(job.seconds)])
    return [*columns, *(key.replace("_", " ") for key in BILL), "time"], rows


def _purpose(plan: Plan, job: Job) -> str:
    """``reported``, or ``tuning`` with the values that the job tries."""
    if job.role != "tuning" or plan.suite.search is None:
        return job.role
    tried = {key: job.settings.get(key) for key in plan.suite.search.axes(job.method)}
    return f"tuning: {settings_text(tried)}"


def totals(jobs: Sequence[Job]) -> dict[str, Any]:
    """Sums over jobs; a sum is None where a part of it is not known."""
    works = [job.work for job in jobs if job.work is not None]
    times = [job.seconds for job in jobs if job.seconds is not None]
    work = sum(works, Work()) if len(works) == len(jobs) else None
    return costs_data(work) | {"seconds": sum(times) if len(times) == len(jobs) else None}


def plan_text(plan: Plan, at_a_time: int, why_no_time: str, later: Sequence[Job] = ()) -> list[str]:
    """The lines below the plan: counts, cost of the jobs left, and how the time was estimated.

    Args:
        later: jobs of a search's later rounds (``sweep.plan.later_jobs``).
    """
    states = ("new", "done", "unfinished", "failed", "waiting")
    counted = ", ".join(f"{plan.count(state)} {state}" for state in states if plan.count(state))
    lines = [f"{len(plan.jobs)} jobs: {counted}", *found_settings(plan)]
    left = jobs_left(plan, later)
    if not left:
        return lines
    sums = totals(left)
    if plan.suite.search and not all(choice.settled for choice in plan.choices):
        lines += later_rounds(plan.suite.search.rounds)
    rounds = ""
    if later:
        lines.append(f"{len(later)} more jobs at most in later rounds, counted below")
        rounds = ", later rounds included"
    if most := most_jobs_by_extension(plan):
        lines.append(f"up to {most} more jobs where a list is extended, not counted below")
    if sums["images"] is not None:
        costs = ", ".join(f"{sums[key]:,} {key.replace('_', ' ')}" for key in BILL)
        lines.append(f"left to do (unfinished jobs counted whole{rounds}): {costs}")
        lines.append(f"besides, {sums['evaluation_denoiser_calls']:,} denoiser calls to judge the checkpoints")
    if sums["seconds"] is None:
        lines.append(f"time: not known{': ' + why_no_time if why_no_time else ''}")
    else:
        work, wall = duration(sums["seconds"]), duration(sums["seconds"] / at_a_time)
        lines.append(f"time: about {work} of work, {wall} with {at_a_time} at a time (measured here)")
    return lines


def jobs_left(plan: Plan, later: Sequence[Job]) -> list[Job]:
    """The jobs that are not done, and those of later rounds."""
    return [*(job for job in plan.jobs if job.state != "done"), *later]


def most_jobs_by_extension(plan: Plan) -> int:
    """The most jobs that longer lists can add to the plan's searches."""
    search, groups = plan.suite.search, {job.search_group for job in plan.jobs}
    if search is None:
        return 0
    return sum(most_by_extension(search, choice) for choice in plan.choices if choice.group in groups)


def found_settings(plan: Plan) -> list[str]:
    """What each search that has ended has found; one line a search."""
    groups = {job.search_group for job in plan.jobs}
    models = {job.model for job in plan.jobs}
    lines = []
    for choice in plan.choices:
        if not choice.settled or choice.group not in groups:
            continue
        g = choice.group
        model = g.model if len(models) > 1 else ""
        what = ", ".join(name for name in (g.method, g.reward, model, g.variant) if name)
        tried = len(choice.candidates)
        if choice.chosen is None:
            lines.append(f"search for {what}: none of {tried} settings is left, all failed or are out")
            continue
        edge = f"; {shown(choice.on_edge)} is still at an end of its list" if choice.on_edge else ""
        fixed = _edge_keys(plan, choice)
        edge += f"; edge of its values: {shown(fixed)}" if fixed else ""
        lines.append(f"search for {what}: {settings_text(choice.chosen.settings)} (best of {tried}{edge})")
    return lines


def _edge_keys(plan: Plan, choice: Choice) -> tuple[str, ...]:
    """Chosen settings at an edge of a list that the search does not extend; none before there is a choice."""
    if choice.chosen is None or plan.suite.search is None:
        return ()
    tried = [one.settings for one in choice.candidates]
    return edge_of_values(tried, choice.chosen.settings, plan.suite.search.settings.extend)


def later_rounds(rounds: Sequence[Round]) -> list[str]:
    """What a search does after its first round, whose jobs are in the plan; one line a round."""
    lines = []
    for number, one in enumerate(rounds[1:], 2):
        axis, amount = next(iter(one.budget.items()))
        budget = limit_text(amount, axis.removeprefix("budget."))
        seeds = ", ".join(map(str, one.seeds))
        lines.append(f"then round {number} of each search: its best {one.keep}, {budget}, training seeds {seeds}")
    return lines


def plan_data(plan: Plan, later: Sequence[Job] = ()) -> dict[str, Any]:
    """The plan for ``--json``; ``later`` as in :func:`plan_text`."""
    choices = []
    for choice in plan.choices:
        chosen = dict(choice.chosen.settings) if choice.chosen else None
        edges = {"on_edge": choice.on_edge, "edge_of_values": _edge_keys(plan, choice)}
        choices.append({"group": list(choice.group), "chosen": chosen, "cost": choice.cost, **edges})
    return {
        "suite": plan.suite.name,
        "cells": [job_data(job) for job in plan.jobs],
        "later_jobs": len(later),
        "most_jobs_by_extension": most_jobs_by_extension(plan),
        "left": totals(jobs_left(plan, later)),
        "choices": choices,
    }


def job_data(job: Job) -> dict[str, Any]:
    """One job for ``--json``."""
    names = ("method", "reward", "model", "variant", "seed", "role", "state", "message", "seconds")
    return {"run": job.run_id, **{name: getattr(job, name) for name in names}, **costs_data(job.work)}


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
    status = folder.status_or_unknown
    phase = str(status.get("message", "")) if status.get("state") == "running" else "starting"
    row = last_line(folder.path / "train.jsonl") or {}
    used = clean_bill(row.get("bill")).get(str(job.settings["budget.axis"]))
    amount = job.settings["budget.amount"]
    share = f"{100 * used / amount:.0f} %" if isinstance(used, int | float) and used else "-"
    reward = row.get("reward_mean")
    return [phase or "-", share, f"{reward:.4g}" if isinstance(reward, int | float) else "-"]
