"""What ``sdpo-bench sweep`` does; imported only when it is called. No torch in this process."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

from sdpo_bench.cli.options import echo_json
from sdpo_bench.cli.sweep_view import SweepView, Tally, job_data, plan_data, plan_table, plan_words, tally
from sdpo_bench.config.resolve import Resolved
from sdpo_bench.errors import Unwritable, UsageError
from sdpo_bench.estimates.time_estimate import Rates, reward_keys
from sdpo_bench.models.catalogue import check_devices
from sdpo_bench.plugins.conflicts import refuse_idle_devices
from sdpo_bench.results.select_runs import parse_select
from sdpo_bench.results.suite_records import write_record
from sdpo_bench.runs.run_folder import check_writable
from sdpo_bench.settings import ModelSettings, Runtime
from sdpo_bench.sweep.local_executor import Executor, LocalExecutor
from sdpo_bench.sweep.plan import Plan, keep, make_plan, record_of
from sdpo_bench.sweep.scheduler import Progress, Sweep, move_to_replaced
from sdpo_bench.sweep.suite import Suite, find_suite
from sdpo_bench.system.console_text import print_table
from sdpo_bench.system.json_toml import parse_json

MEASURING_LIMIT = 600  # seconds


def sweep_command(
    *,
    suite_name: str,
    out: Path,
    only_failed: bool,
    force: bool,
    jobs: int,
    max_hours: float | None,
    filters: tuple[str, ...],
    dry_run: bool,
    executor: str,
    address: str,
    cpus: int,
    gpus: float,
    device: str,
    threads: int,
    micro_batch: int,
    checkpoint_every: int,
    as_json: bool,
) -> None:
    """``sdpo-bench sweep``. Where the results folder cannot be written, what is done is shown all the same."""
    suite = find_suite(suite_name)
    selection = parse_select(filters, option="--filter")
    _refuse_strangers(executor, address, jobs, threads, cpus, gpus, device)
    if dry_run:
        begin = partial(begun, only_failed=only_failed, force=force)
        first = device.split(",")[0]
        _dry_run(suite, out, selection, jobs, first, threads, micro_batch, as_json, begin)
        return
    plan = keep(make_plan(suite, out), selection)  # whatever can be refused is refused before anything is written
    try:
        check_writable(out)
    except Unwritable:
        if force or any(job.state != "done" for job in begun(plan, only_failed=only_failed, force=False).jobs):
            raise
        _show_outcome(Progress(plan, []), as_json)
        return
    runtime = Runtime(out.resolve(), "auto", micro_batch, checkpoint_every)
    place = _executor(executor, runtime, address, jobs, threads, cpus, gpus, device)
    if force:
        moved = move_to_replaced(plan, only_failed)
        click.echo(f"{moved} runs moved to {out / 'replaced'}; they start from the beginning", err=True)
        plan = begun(plan, only_failed=only_failed, force=True)
    wanted = {job.key for job in plan.jobs}
    progress = _sweep(suite, out, wanted, place, runtime, only_failed and not force, max_hours)
    if _show_outcome(progress, as_json):
        sys.exit(1)


def begun(plan: Plan, *, only_failed: bool, force: bool) -> Plan:
    """The jobs that ``--only-failed`` leaves, as they are when ``--force`` has moved what they had aside."""
    jobs = [job for job in plan.jobs if not only_failed or job.state == "failed"]
    if force:
        jobs = [replace(job, state="new", message="") if job.run_id else job for job in jobs]
    return replace(plan, jobs=tuple(jobs))


def _sweep(
    suite: Suite,
    out: Path,
    wanted: set[tuple[str, ...]],
    place: Executor,
    runtime: Runtime,
    only_failed: bool,
    max_hours: float | None,
) -> Progress:
    """``wanted``: keys of the jobs, chosen once; what a job can be chosen by changes while it is worked on."""
    displaced: list[bool] = []

    def replan() -> Plan:
        plan = make_plan(suite, out)
        displaced.append(write_record(out, suite.name, record_of(plan)))
        return replace(plan, jobs=tuple(job for job in plan.jobs if job.key in wanted))

    deadline = time.monotonic() + 3600 * max_hours if max_hours else None
    try:
        with SweepView() as view:
            sweep = Sweep(replan, place, runtime, only_failed=only_failed, deadline=deadline, tell=view.tell)
            if not sweep.progress.todo:
                click.echo("nothing to do: no job is left" + (" that failed" if only_failed else ""), err=True)
            return sweep.run(resume_command())
    finally:
        place.close()
        if any(displaced):
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


def _refuse_strangers(
    executor: str, address: str, jobs: int, threads: int, cpus: int, gpus: float, device: str
) -> None:
    """Options of the executor that was not chosen, and devices that no job would get."""
    if executor == "local":
        if address != "auto" or cpus != 1 or gpus:
            raise UsageError("--address, --cpus-per-cell and --gpus-per-cell belong to --executor ray.")
        refuse_idle_devices(device, jobs)
    elif jobs != 1 or threads:
        raise UsageError(
            "--jobs and --threads belong to --executor local: Ray runs as many jobs at once as the cluster has "
            "room for. Give each job its share by --cpus-per-cell and --gpus-per-cell."
        )
    elif "," in device:
        raise UsageError(f"--device {device}: Ray gives each job its own device. Use --gpus-per-cell 1 and one name.")


def _executor(
    name: str, runtime: Runtime, address: str, jobs: int, threads: int, cpus: int, gpus: float, device: str
) -> Executor:
    if name == "ray":
        from sdpo_bench.sweep.ray_executor import RayExecutor

        return RayExecutor(address, runtime.out, cpus=cpus, gpus=gpus, device=device)
    return LocalExecutor(jobs, threads=threads, devices=check_devices(device))


# -- output --------------------------------------------------------------------------------------------------


def _show_outcome(progress: Progress, as_json: bool) -> int:
    """Print how the sweep ended; how many of its jobs failed."""
    plan = progress.with_failures(make_plan(progress.plan.suite, progress.plan.out))
    found = tally(progress, plan)
    logs = plan.out / "logs"
    if as_json:
        echo_json(
            {
                "suite": plan.suite.name,
                "cells": _jobs_data(progress, plan, found),
                "failed": len(found.failed),
                "left": len(found.left),
                "logs": logs,
            }
        )
        return len(found.failed)
    if found.failed:
        shown = [(job, str(logs / f"{job.run_id}.log") if job.run_id else "-") for job in found.failed]
        print_table(["failed job", "why", "log"], [[job.label, job.message, log] for job, log in shown])
    jobs = sum(map(len, found))
    click.echo(f"{len(found.done)} of {jobs} jobs done, {len(found.failed)} failed, {len(found.left)} left")
    if found.failed:
        click.echo(f"try them again: {resume_command()} --only-failed")
    elif found.left:
        click.echo(f"go on: {resume_command()}")
    click.echo(f"tables: sdpo-bench report --results {shlex.quote(str(plan.out))}")
    return len(found.failed)


def _jobs_data(progress: Progress, plan: Plan, found: Tally) -> list[dict[str, Any]]:
    """The jobs for ``--json``, in the order of the plan."""
    outcomes = dict(progress.outcomes)
    for job in found.done:
        if outcomes.get(job.key) in ("failed", "stopped"):
            outcomes[job.key] = "elsewhere"
    told = {job.key: job for jobs in found for job in jobs}
    ordered = [told[job.key] for job in plan.jobs if job.key in told]
    return [job_data(job) | {"outcome": outcomes.get(job.key, "skipped")} for job in ordered]


def _dry_run(
    suite: Suite,
    out: Path,
    selection: dict[str, list[str]],
    jobs: int,
    device: str,
    threads: int,
    micro_batch: int,
    as_json: bool,
    begin: Callable[[Plan], Plan],
) -> None:
    wanted: dict[str, tuple[ModelSettings, set[str]]] = {}
    keep(make_plan(suite, out, partial(collect, wanted)), selection)
    rates, why = measured_rates(wanted, device, threads, micro_batch)
    priced = make_plan(suite, out, lambda resolved: rates.get(model_key(resolved.config.model)))
    plan = begin(keep(priced, selection))
    if as_json:
        echo_json(plan_data(plan) | {"no_time_because": why})
        return
    columns, rows = plan_table(plan)
    print_table(columns, rows, title=f"{suite.name}: {suite.description}")
    if suite.reproduces:
        click.echo(f"reproduces: {suite.reproduces}")
    if suite.departs:
        click.echo(f"departs: {suite.departs}")
    for line in plan_words(plan, jobs, why):
        click.echo(line)
    click.echo("nothing was run (--dry-run)")


# -- speed of this machine ---------------------------------------------------------------------------------------------


def model_key(model: ModelSettings) -> str:
    """Under which rates are kept."""
    return json.dumps(asdict(model), sort_keys=True)


def collect(wanted: dict[str, tuple[ModelSettings, set[str]]], resolved: Resolved) -> None:
    """Note what a job would have to be measured for."""
    model = resolved.config.model
    _, rewards = wanted.setdefault(model_key(model), (model, set()))
    rewards |= reward_keys(resolved)[1]


def measured_rates(
    wanted: dict[str, tuple[ModelSettings, set[str]]], device: str, threads: int, micro_batch: int
) -> tuple[dict[str, Rates], str]:
    """Measured rates by model, and why one is missing.

    Measured by a process of its own, so that torch never enters this one.
    """
    models = [
        {"key": key, "settings": asdict(model), "rewards": [json.loads(one) for one in sorted(rewards)]}
        for key, (model, rewards) in wanted.items()
    ]
    request = json.dumps({"device": device, "threads": threads, "micro_batch": micro_batch, "models": models})
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
    reasons = [str(answer["error"]) for answer in answers.values() if "error" in answer]
    if not answers:
        lines = done.stderr.strip().splitlines()
        reasons.append(f"measuring this machine failed: {lines[-1] if lines else 'no output'}")
    return rates, "; ".join(dict.fromkeys(reasons))
