"""What ``sdpo-bench sweep`` does; imported only when it is called. No torch in this process."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import click

from sdpo_bench.cli.commands.fetch import missing_names
from sdpo_bench.cli.options import echo_json
from sdpo_bench.cli.sweep_view import SweepView, found_settings, job_data, plan_data, plan_table, plan_text
from sdpo_bench.config.resolve import Resolved
from sdpo_bench.errors import Unwritable, UsageError
from sdpo_bench.estimates.time_estimate import Rates, reward_keys
from sdpo_bench.models.base_model import check_devices
from sdpo_bench.models.known_models import KNOWN
from sdpo_bench.plugins.conflicts import refuse_idle_devices
from sdpo_bench.results.select_runs import parse_select
from sdpo_bench.results.suite_records import write_record
from sdpo_bench.runs.run_folder import check_writable
from sdpo_bench.settings import ModelSettings, Runtime
from sdpo_bench.sweep.local_executor import Executor, LocalExecutor
from sdpo_bench.sweep.plan import Job, Plan, filter_jobs, later_jobs, make_plan, record_of, without_curve
from sdpo_bench.sweep.scheduler import Progress, Sweep, move_to_replaced
from sdpo_bench.sweep.suite import Suite, find_suite
from sdpo_bench.sweep.suite_model import on_model
from sdpo_bench.system.console_text import print_table
from sdpo_bench.system.json_toml import parse_json

MEASURING_LIMIT = 600  # seconds
ModelRewards = dict[str, tuple[ModelSettings, set[str]]]
"""By :func:`model_key`: a model and the keys of the rewards that judge its images."""


@dataclass(frozen=True)
class SweepOptions:
    """The options of the command."""

    suite_name: str
    out: Path
    only_failed: bool
    force: bool
    jobs: int
    max_hours: float | None
    filters: tuple[str, ...]
    model: str | None
    dry_run: bool
    executor: str
    address: str
    cpus: int
    gpus: float
    device: str
    threads: int
    micro_batch: int
    checkpoint_every: int
    as_json: bool


def sweep_command(options: SweepOptions) -> None:
    """``sdpo-bench sweep``. In a results folder that cannot be written, finished jobs are shown all the same."""
    suite = find_suite(options.suite_name)
    if options.model is not None:
        suite = on_model(suite, options.model)
    selection = parse_select(options.filters, option="--filter")
    _refuse_idle_options(options)
    if options.dry_run:
        _dry_run(suite, selection, options)
        return
    only_failed, force = options.only_failed, options.force
    plan = filter_jobs(make_plan(suite, options.out), selection)  # refuses before anything is written
    try:
        check_writable(options.out)
    except Unwritable:
        if force or any(job.state != "done" for job in jobs_at_start(plan, only_failed=only_failed, force=False).jobs):
            raise
        _show_outcome(Progress(plan, []), options.as_json)
        return
    runtime = Runtime(options.out.resolve(), "auto", options.micro_batch, options.checkpoint_every)
    place = _executor(options, runtime)
    if force:
        moved = move_to_replaced(plan, only_failed)
        click.echo(f"{moved} runs moved to {options.out / 'replaced'}; they start from the beginning", err=True)
        plan = jobs_at_start(plan, only_failed=only_failed, force=True)
    progress = _sweep(suite, options, plan.jobs, place, runtime)
    if _show_outcome(progress, options.as_json):
        sys.exit(1)


def jobs_at_start(plan: Plan, *, only_failed: bool, force: bool) -> Plan:
    """The jobs that ``--only-failed`` leaves, in the states that they have after ``--force``."""
    jobs = [job for job in plan.jobs if not only_failed or job.state == "failed"]
    if force:
        jobs = [replace(job, state="new", message="") if job.run_id else job for job in jobs]
    return replace(plan, jobs=tuple(jobs))


def _sweep(suite: Suite, options: SweepOptions, jobs: Sequence[Job], place: Executor, runtime: Runtime) -> Progress:
    """Sweep these jobs, which were selected once: a job's state changes while it runs."""
    keys, groups = {job.key for job in jobs}, {job.search_group for job in jobs}
    replaced: list[bool] = []

    def replan() -> Plan:
        plan = make_plan(suite, options.out)
        replaced.append(write_record(options.out, suite.name, record_of(plan)))
        # Those of a search's later rounds are known once the earlier ones have ended.
        chosen = [job for job in plan.jobs if job.key in keys or (job.role == "tuning" and job.search_group in groups)]
        return replace(plan, jobs=tuple(chosen))

    only_failed = options.only_failed and not options.force
    deadline = time.monotonic() + 3600 * options.max_hours if options.max_hours else None
    try:
        with SweepView() as view:
            sweep = Sweep(replan, place, runtime, only_failed=only_failed, deadline=deadline, tell=view.tell)
            if not sweep.progress.todo:
                click.echo("nothing to do: no job is left" + (" that failed" if only_failed else ""), err=True)
            return sweep.run(resume_command())
    finally:
        place.close()
        if any(replaced):
            click.echo(
                f"warning: suites/{suite.name}.json was of another suite of this name, or of other settings. Its runs "
                "stay, but no report has its table any more. To keep both, give the suites different names or --out.",
                err=True,
            )


def resume_command(arguments: list[str] | None = None) -> str:
    """The command that goes on, as it was typed: without ``--force``, which would begin again, and ``--only-failed``,
    which would leave out what was interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return "sdpo-bench " + shlex.join(word for word in words if word not in ("--force", "--only-failed"))


def _refuse_idle_options(options: SweepOptions) -> None:
    """Refuse options of the other executor, and devices that no job would get."""
    if options.executor == "local":
        if options.address != "auto" or options.cpus != 1 or options.gpus:
            raise UsageError("--address, --cpus-per-cell and --gpus-per-cell belong to --executor ray.")
        refuse_idle_devices(options.device, options.jobs)
    elif options.jobs != 1 or options.threads:
        raise UsageError(
            "--jobs and --threads belong to --executor local: Ray runs as many jobs at once as the cluster has "
            "room for. Give each job its share by --cpus-per-cell and --gpus-per-cell."
        )
    elif "," in options.device:
        raise UsageError(
            f"--device {options.device}: Ray gives each job its own device. Use --gpus-per-cell 1 and one name."
        )


def _executor(options: SweepOptions, runtime: Runtime) -> Executor:
    if options.executor == "ray":
        from sdpo_bench.sweep.ray_executor import RayExecutor

        return RayExecutor(options.address, runtime.out, cpus=options.cpus, gpus=options.gpus, device=options.device)
    return LocalExecutor(options.jobs, threads=options.threads, devices=check_devices(options.device))


# -- output --------------------------------------------------------------------------------------------------


def _show_outcome(progress: Progress, as_json: bool) -> int:
    """Print how the sweep ended; returns the number of jobs that failed in it."""
    plan = progress.with_failures(make_plan(progress.plan.suite, progress.plan.out))
    keys = set(progress.jobs)
    jobs = [job for job in plan.jobs if job.key in keys]
    done = sum(job.state == "done" for job in jobs)
    failed = [job for job in jobs if job.state == "failed" and progress.outcomes.get(job.key) == "failed"]
    left = len(jobs) - done - len(failed)
    logs = plan.out / "logs"
    if lacking := without_curve(replace(plan, jobs=tuple(jobs))):
        click.echo(
            f"note: eval.every has no effect on finished runs: {len(lacking)} of {done} were trained without a "
            f"learning curve, e.g. {lacking[0].label}. To train the suite's runs again with one: another --out FOLDER",
            err=True,
        )
    if as_json:
        cells = [job_data(job) | {"outcome": _outcome(job, progress)} for job in jobs]
        echo_json({"suite": plan.suite.name, "cells": cells, "failed": len(failed), "left": left, "logs": logs})
        return len(failed)
    if failed:
        rows = [[job.label, job.message, str(logs / f"{job.run_id}.log") if job.run_id else "-"] for job in failed]
        print_table(["failed job", "why", "log"], rows)
    for line in found_settings(replace(plan, jobs=tuple(jobs))):
        click.echo(line)
    click.echo(f"{done} of {len(jobs)} jobs done, {len(failed)} failed, {left} left")
    if failed:
        click.echo(f"try them again: {resume_command()} --only-failed")
    elif left:
        click.echo(f"go on: {resume_command()}")
    click.echo(f"tables: sdpo-bench report --results {shlex.quote(str(plan.out))}")
    return len(failed)


def _outcome(job: Job, progress: Progress) -> str:
    outcome = progress.outcomes.get(job.key, "skipped")
    return "elsewhere" if job.state == "done" and outcome in ("failed", "stopped") else outcome


def _dry_run(suite: Suite, selection: dict[str, list[str]], options: SweepOptions) -> None:
    models: ModelRewards = {}
    filter_jobs(make_plan(suite, options.out, partial(collect, models)), selection)
    device = options.device.split(",")[0]
    rates, why = measured_rates(models, device, options.threads, options.micro_batch)

    def rates_of(resolved: Resolved) -> Rates | None:
        return rates.get(model_key(resolved.config.model))

    priced = filter_jobs(make_plan(suite, options.out, rates_of), selection)
    later = () if options.only_failed else later_jobs(priced, rates_of)
    plan = jobs_at_start(priced, only_failed=options.only_failed, force=options.force)
    if options.as_json:
        echo_json(plan_data(plan, later) | {"no_time_because": why})
        return
    columns, rows = plan_table(plan)
    print_table(columns, rows, title=f"{suite.name}: {suite.description}")
    if suite.reproduces:
        click.echo(f"reproduces: {suite.reproduces}")
    if suite.departs:
        click.echo(f"departs: {suite.departs}")
    for line in plan_text(plan, options.jobs, why, later):
        click.echo(line)
    click.echo("nothing was run (--dry-run)")


# -- speed of this machine ---------------------------------------------------------------------------------------------


def model_key(model: ModelSettings) -> str:
    """The key of a model's rates."""
    return json.dumps(asdict(model), sort_keys=True)


def collect(models: ModelRewards, resolved: Resolved) -> None:
    """Add what has to be measured for a job."""
    model = resolved.config.model
    _, rewards = models.setdefault(model_key(model), (model, set()))
    rewards |= reward_keys(resolved)[1]


def measured_rates(models: ModelRewards, device: str, threads: int, micro_batch: int) -> tuple[dict[str, Rates], str]:
    """Measured rates by model, and why one is missing.

    Measured by a process of its own, so that torch never enters this one.
    """
    asked = [
        {"key": key, "settings": asdict(model), "rewards": [json.loads(one) for one in sorted(rewards)]}
        for key, (model, rewards) in models.items()
    ]
    request = json.dumps({"device": device, "threads": threads, "micro_batch": micro_batch, "models": asked})
    command = [sys.executable, "-m", "sdpo_bench.estimates.measure_speed"]
    quiet = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, text=True, timeout=MEASURING_LIMIT, env=quiet
        )
        answers = parse_json(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}
    except (subprocess.TimeoutExpired, ValueError):
        return {}, "measuring this machine took too long"
    rates = {key: Rates(**answer["rates"]) for key, answer in answers.items() if "rates" in answer}
    reasons = [_reason(*models[key], str(answer["error"])) for key, answer in answers.items() if "error" in answer]
    if not answers:
        lines = done.stderr.strip().splitlines()
        reasons.append(f"measuring this machine failed: {lines[-1] if lines else 'no output'}")
    return rates, "; ".join(dict.fromkeys(reasons))


def _reason(model: ModelSettings, rewards: set[str], error: str) -> str:
    """Why nothing could be measured: the weights that are not here, in place of what a library says of the first."""
    names = [model.name, *sorted({json.loads(key)[0] for key in rewards})]
    missing = missing_names([name for name in names if name != model.name or name in KNOWN])
    if not missing:
        return error
    return f"the weights of {', '.join(missing)} are not on this machine: sdpo-bench fetch {' '.join(missing)}"
