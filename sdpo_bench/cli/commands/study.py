"""What ``sdpo-bench study`` does; imported only when it is called. Torch comes in with the study's own findings."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from sdpo_bench.cli.commands.sweep import collect, measured_rates, model_key, resume_command
from sdpo_bench.cli.options import echo_json, parse_seeds
from sdpo_bench.cli.sweep_view import SweepView, plan_data, plan_table, plan_text
from sdpo_bench.config.resolve import Resolved
from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import Rates
from sdpo_bench.models.base_model import check_devices
from sdpo_bench.plugins.conflicts import refuse_idle_devices, refuse_what_a_study_owns
from sdpo_bench.plugins.parse_settings import parse_set
from sdpo_bench.plugins.registry import find
from sdpo_bench.reporting.console import make_console, print_study
from sdpo_bench.reporting.markdown import csv_tables, study_data
from sdpo_bench.reporting.study_view import study_view
from sdpo_bench.results.study_record import StudyRecord, study_file, study_folder, write_study
from sdpo_bench.runs import provenance
from sdpo_bench.runs.run_folder import check_writable
from sdpo_bench.settings import ModelSettings, Runtime
from sdpo_bench.studies.shared.contract import Bench, Design, Study, StudyRequest, design_facts, parse_size, variant_of
from sdpo_bench.studies.shared.trainings import Trainings, merged_plan, reopen
from sdpo_bench.sweep.local_executor import LocalExecutor
from sdpo_bench.sweep.plan import Plan
from sdpo_bench.sweep.scheduler import Sweep
from sdpo_bench.sweep.suite import Suite
from sdpo_bench.system.console_text import print_table


def study_command(
    *,
    name: str,
    size: str,
    out: Path,
    dry_run: bool,
    jobs: int,
    model: str,
    rewards: tuple[str, ...],
    preset: str | None,
    seeds: str,
    sets: tuple[str, ...],
    device: str,
    threads: int,
    micro_batch: int,
    as_json: bool,
) -> None:
    """``sdpo-bench study``."""
    plugin = find("studies", name)
    study: Study = plugin.load()()
    request = StudyRequest(parse_size(size), model, rewards, preset, parse_seeds(seeds), parse_set(sets))
    refuse_what_a_study_owns(request.overrides)
    refuse_idle_devices(device, jobs)
    design = study.design(request)
    _refuse_idle(plugin.name, design, request.overrides, jobs)
    folder = study_folder(out, plugin.name)
    if dry_run:
        _dry_run(study, design, request, folder, jobs, device.split(",")[0], threads, micro_batch, as_json)
        return
    check_writable(folder)
    started = time.monotonic()
    devices = check_devices(device)
    runtime = Runtime(folder.resolve(), devices[0], micro_batch, threads=threads)
    trainings = _train(study, design, request, runtime, jobs, devices)
    findings = study.findings(Bench(request, design, runtime, trainings, partial(click.echo, err=True)))
    record = StudyRecord(
        plugin.name,
        variant_of(request),
        study.question,
        design_facts(design, request),
        design.statistics,
        findings,
        _command(plugin.name, size, request, seeds, sets),
        time.monotonic() - started,
        _states(trainings),
        provenance.versions(),
        provenance.hardware(runtime.device),
    )
    write_study(out, record, csv_tables([(study_view(record).title, table) for table in findings.tables]))
    _show(record, out, as_json)


def _show(record: StudyRecord, out: Path, as_json: bool) -> None:
    """Print a finished study; exit code 1 where trainings failed."""
    view, path = study_view(record), study_file(out, record.study, record.variant)
    if as_json:
        echo_json(study_data(view) | {"file": path, "runs": record.runs})
    else:
        tty = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns if tty else None
        print_study(make_console(sys.stdout, width=width, colour=tty), view)
        click.echo(f"\nplots: sdpo-bench report --format html --results {shlex.quote(str(out))}\n{path}")
    trained = sum(record.runs.values())
    if failed := trained - record.runs.get("done", 0):
        click.echo(f"{failed} of {trained} trainings failed; they are counted in the tables", err=True)
        sys.exit(1)


def _refuse_idle(name: str, design: Design, overrides: Mapping[str, Any], jobs: int) -> None:
    """Refuse options of trainings where a study has none."""
    if design.suites:
        return
    if jobs != 1:
        raise UsageError(f"--jobs {jobs}: '{name}' trains nothing, so there is one job. Leave it out.")
    if idle := [key for key in overrides if key.startswith(("update.", "checkpoint.", "guard."))]:
        raise UsageError(f"--set {idle[0]}: '{name}' trains nothing, so it would have no effect. Leave it out.")


def _command(name: str, size: str, request: StudyRequest, seeds: str, sets: Sequence[str]) -> str:
    """The call without what changes no number."""
    words = ["sdpo-bench", "study", name, "--size", size]
    words += ["--model", request.model] if request.model else []
    words += [word for reward in request.rewards for word in ("--reward", reward)]
    words += ["--preset", request.preset] if request.preset else []
    words += ["--seeds", seeds] if seeds else []
    return shlex.join([*words, *(word for one in sets for word in ("--set", one))])


def _states(trainings: Trainings) -> dict[str, int]:
    states: dict[str, int] = {}
    for run in trainings.runs:
        state = run.job.state if run.job.state != "done" or not run.why_not else "diverged"
        states[state] = states.get(state, 0) + 1
    return states


# -- trainings -----------------------------------------------------------------------------------------------


def _train(
    study: Study, design: Design, request: StudyRequest, runtime: Runtime, jobs: int, devices: Sequence[str]
) -> Trainings:
    """Every training of the study, those included that can only be planned afterwards."""
    if not design.suites:
        return Trainings(runtime.out, ())
    trainings = _sweep(study.name, design.suites, runtime, jobs, devices)
    if more := study.follow_up(request, trainings):
        trainings = _sweep(study.name, [*design.suites, *more], runtime, jobs, devices)
    return trainings


def _sweep(name: str, suites: Sequence[Suite], runtime: Runtime, jobs: int, devices: Sequence[str]) -> Trainings:
    replan: Callable[[], Plan] = partial(merged_plan, f"study {name}", suites, runtime.out)
    reopen(replan())
    place = LocalExecutor(jobs, threads=runtime.threads, devices=devices)
    try:
        with SweepView() as view:
            sweep = Sweep(replan, place, runtime, tell=view.tell)
            if sweep.progress.todo:
                sweep.run(resume_command())
    finally:
        place.close()
    return Trainings.of(sweep.progress.with_failures(replan()))


# -- dry run -------------------------------------------------------------------------------------------------


def _dry_run(
    study: Study,
    design: Design,
    request: StudyRequest,
    folder: Path,
    jobs: int,
    device: str,
    threads: int,
    micro_batch: int,
    as_json: bool,
) -> None:
    plan, why = _costed_plan(study, design, folder, device, threads, micro_batch)
    facts = design_facts(design, request)
    if as_json:
        data: dict[str, Any] = {"study": study.name, "question": study.question, "design": dict(facts)}
        data |= {"statistics": design.statistics, "denoiser_calls": design.denoiser_calls}
        echo_json(data | ({"plan": plan_data(plan)} if plan else {}))
        return
    click.echo(study.question)
    for key, value in facts:
        click.echo(f"{key}: {value}")
    for line in design.statistics:
        click.echo(line)
    if plan:
        columns, rows = plan_table(plan)
        print_table(columns, rows, title=f"trainings of {study.name}")
        for line in plan_text(plan, jobs, why):
            click.echo(line)
    if design.denoiser_calls:
        click.echo(f"{design.denoiser_calls:,} denoiser calls of the study itself")
    click.echo("nothing was run (--dry-run)")


def _costed_plan(
    study: Study, design: Design, folder: Path, device: str, threads: int, micro_batch: int
) -> tuple[Plan | None, str]:
    if not design.suites:
        return None, ""
    models: dict[str, tuple[ModelSettings, set[str]]] = {}
    merged_plan(study.name, design.suites, folder, partial(collect, models))
    rates, why = measured_rates(models, device, threads, micro_batch)
    return merged_plan(study.name, design.suites, folder, partial(_rates_of, rates)), why


def _rates_of(rates: Mapping[str, Rates], resolved: Resolved) -> Rates | None:
    return rates.get(model_key(resolved.config.model))
