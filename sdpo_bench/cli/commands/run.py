"""``sdpo-bench run``: its plan, its memory, its outcome; imported only when it is called, since it needs torch."""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from sdpo_bench.cli.options import echo_json
from sdpo_bench.config.resolve import Request, Resolved, resolve
from sdpo_bench.config.sampler_fit import planning_scheduler
from sdpo_bench.config.run_file import RunFile, read_run_file, replaced_settings, run_file_text
from sdpo_bench.config.training_schedule import training_schedule
from sdpo_bench.errors import MissingError, Unwritable, UsageError
from sdpo_bench.estimates import memory_estimate
from sdpo_bench.estimates.time_estimate import epoch_work, evaluation_work, make_method
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.ledger import limit_text, parse_budget
from sdpo_bench.models.catalogue import pick_device, pipeline_files
from sdpo_bench.models.cut_prompts import prompts_of_run, read_from_files
from sdpo_bench.plugins.conflicts import refuse_two_values
from sdpo_bench.plugins.parse_settings import parse_set
from sdpo_bench.running.live import Live, print_step_table
from sdpo_bench.running.run_one import Outcome, run_job
from sdpo_bench.runs.adapter import log_changed
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.system.console_text import print_table
from sdpo_bench.system.distributed import launched
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.output_paths import user_file
from sdpo_bench.system.progress import Watcher
from sdpo_bench.training import collapse_guards
from sdpo_bench.training.bill_text import (
    add_bills,
    bill_text,
    part_correlation,
    part_lines,
    reference_lines,
    search_bill,
    search_lines,
    skipped_steps,
)
from sdpo_bench.training.loss_scale import INITIAL


def run_command(
    *,
    method: str | None,
    reward: str | None,
    model: str | None,
    preset: str | None,
    seed: int | None,
    budget: str | None,
    sets: tuple[str, ...],
    config_file: Path | None,
    write_config: Path | None,
    dry_run: bool,
    out: Path,
    device: str,
    threads: int,
    micro_batch: int,
    checkpoint_every: int,
    reward_timeout: float,
    async_rewards: bool,
    as_json: bool,
) -> None:
    """``sdpo-bench run``."""
    overrides = parse_set(sets)
    _refuse_contradictions(overrides, method=method, reward=reward, model=model, seed=seed, budget=budget)
    file = read_run_file(config_file) if config_file else None
    if file:
        flags = {"method.name": method, "reward.name": reward, "model.name": model, "preset": preset, "seed": seed}
        _say_replaced(file, overrides, flags, budget)
    if budget:
        axis, amount = parse_budget(budget)
        overrides[f"budget.{axis}"] = amount
    resolved = resolve(Request(method, reward, model, preset, seed, overrides, file))
    if write_config:
        _write_config(resolved, write_config, config_file, out)
    runtime = Runtime(out, device, micro_batch, checkpoint_every, threads, reward_timeout, async_rewards)
    if dry_run:
        _show_plan(resolved, runtime, as_json)
        return
    label = f"{resolved.config.method.name} on {resolved.reward_name}"
    with launched(pick_device(device)) as processes:
        if processes.is_main:
            _show_needed_memory(resolved, runtime, processes.count)
        with Live(label, quiet=not processes.is_main) as live:
            outcome = run_job(resolved, runtime, Watcher(live.tick, live.evaluation), processes)
        if processes.is_main:
            _show_outcome(resolved, outcome, as_json)


def _refuse_contradictions(
    overrides: Mapping[str, Any], *, seed: int | None, budget: str | None, **names: str | None
) -> None:
    """A flag and a ``--set`` that name two values for one setting."""
    given: dict[str, tuple[str, Any]] = {f"{kind}.name": (f"--{kind} {name}", name) for kind, name in names.items()}
    given["seed"] = (f"--seed {seed}", seed)
    if budget:
        axis, amount = parse_budget(budget)
        typed = f"--budget {budget}"
        given |= {f"budget.{axis}": (typed, amount), "budget.amount": (typed, amount), "budget.axis": (typed, axis)}
    refuse_two_values(overrides, given)


def _say_replaced(file: RunFile, overrides: Mapping[str, Any], flags: Mapping[str, Any], budget: str | None) -> None:
    """One line on standard error for each setting of the file that the command line replaces."""
    given = {key: (f"--set {key}={value}", value) for key, value in overrides.items()}
    given |= {key: (f"--{key.removesuffix('.name')} {name}", name) for key, name in flags.items() if name is not None}
    if budget:
        axis, amount = parse_budget(budget)
        given[f"budget.{axis}"] = (f"--budget {budget}", amount)
    for line in replaced_settings(file, given):
        click.echo(line, err=True)


def _write_config(resolved: Resolved, target: Path, read: Path | None, out: Path) -> None:
    """Write the resolved settings as a run file.

    Raises:
        UsageError: no file that may be written, or the one that was read. MissingError: it cannot be written.
    """
    path = user_file(target, out, "--write-config")
    if read and path == read.resolve():
        raise UsageError(f"--write-config {target} would replace the file that --config reads. Choose another.")
    text = run_file_text(resolved.config, resolved.method, resolved.run_id, target)
    try:
        atomic_write(path, text)
    except Unwritable as error:
        raise MissingError(f"'{target}' cannot be written: {error.strerror}. Choose another file.") from error
    click.echo(f"settings: {target}", err=True)


def _show_outcome(resolved: Resolved, outcome: Outcome, as_json: bool) -> None:
    rows = outcome.run.log()
    bill = add_bills([rows[-1]["bill"] if rows else {}, search_bill(outcome.run.path)])
    seconds = outcome.run.seconds
    if as_json:
        echo_json(
            {
                "run": outcome.run.run_id,
                "folder": outcome.run.path,
                "trained_now": outcome.trained_now,
                "table": outcome.table,
                "bill": bill,
                "skipped_steps": skipped_steps(rows),
                "validation": outcome.run.log("validation.jsonl"),
                "training_seconds": seconds,
                "warnings": [vars(warned) for warned in collapse_guards.warnings(outcome.run)],
                "part_correlation": part_correlation(rows),
                "reward_reference": outcome.run.record().get("reward_reference", {}),
            }
        )
        return
    print_step_table(outcome.table, resolved.reward_name)
    if not outcome.trained_now:
        click.echo("This run was done before; nothing was trained. Another --seed gives a new run.")
    for line in part_lines(resolved.reward_name, part_correlation(rows)):
        click.echo(line)
    click.echo(bill_text(bill, seconds))
    if skipped := skipped_steps(rows):
        click.echo(f"fp16: {skipped:,} of the optimiser steps changed no weight, since their gradients overflowed")
    for line in search_lines(outcome.run.path):
        click.echo(line)
    for line in reference_lines(outcome.run.record().get("reward_reference", {})):
        click.echo(line)
    if candidates := outcome.run.log("validation.jsonl"):
        click.echo(choice_text(candidates, _collapse(resolved, outcome)))
    if changed := log_changed(outcome.run):
        click.echo(f"warning: {changed}.")
    for warned in collapse_guards.warnings(outcome.run):
        click.echo(f"warning: {warned.when}: {warned.text}")
    click.echo(f"evaluation sampler: {ev.sampler_id(resolved.config.eval)}")
    click.echo(f"picture grid: {outcome.run.path / 'grid.png'}")
    click.echo(str(outcome.run.path))


def needed_memory(resolved: Resolved, runtime: Runtime) -> dict[str, Any]:
    """Estimated memory of a run on its device as plain data, with a warning where it will hardly fit."""
    model, device = resolved.config.model, pick_device(runtime.device)
    needed = memory_estimate.estimate(resolved.config, runtime.micro_batch, device)
    if needed is None:
        return {"unknown": f"the architecture of '{model.name}' is not known before it is fetched"}
    free = memory_estimate.available_bytes(device)
    data = needed.as_data() | {"device": device, "free_bytes": free}
    try:
        return data | {"warning": memory_estimate.check(needed, free, model)}
    except MissingError as error:
        return data | {"warning": str(error)}


def _show_needed_memory(resolved: Resolved, runtime: Runtime, processes: int = 1) -> None:
    """One line on standard error before anything is loaded.

    Raises:
        MissingError: the run cannot fit.
    """
    device = pick_device(runtime.device)
    needed = memory_estimate.estimate(resolved.config, runtime.micro_batch, device, processes)
    if needed is None:
        return
    alone = processes == 1 or device.startswith("cuda")
    shared = 1 if alone else max(1, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    free = memory_estimate.available_bytes(device) / shared
    warning = memory_estimate.check(needed, free, resolved.config.model)
    text = (
        f"memory: about {memory_estimate.gigabytes(needed.total)} of {memory_estimate.gigabytes(free)} free on {device}"
    )
    text += f", each of {processes} processes" if processes > 1 else ""
    click.echo(f"warning: {warning}" if warning else text, err=True)


def _collapse(resolved: Resolved, outcome: Outcome) -> int | None:
    """The epoch before which the checkpoint had to be chosen; ``None`` where there was none."""
    chosen = resolved.config.checkpoint
    return collapse_guards.collapsed_at(outcome.run) if chosen and chosen.choose == "before-collapse" else None


def choice_text(candidates: list[dict[str, Any]], collapse: int | None = None) -> str:
    """Which checkpoint was chosen, from how many, at what cost beside the training bill."""
    best = collapse_guards.before_collapse(candidates, collapse)
    calls, rewards = (sum(row[key] for row in candidates) for key in ("denoiser_calls", "reward_calls"))
    return (
        f"checkpoint: epoch {best['epoch']}, best of {len(candidates)} on validation prompts ({best['score']:.4f})"
        f"{f', before the collapse in epoch {collapse}' if collapse else ''}; "
        f"choosing took {calls:,} more denoiser calls and {rewards:,} more reward calls"
    )


def plan(resolved: Resolved) -> dict[str, Any]:
    """Cost of a run before it starts, from its settings alone.

    Raises:
        UsageError: a schedule that the method cannot be trained on.
    """
    config, method = resolved.config, make_method(resolved)
    files = pipeline_files(config.model)
    scheduler = planning_scheduler(files, config.schedule.sampler)
    training_schedule(config, scheduler, method)  # refuses what cannot be trained on
    initial = INITIAL if config.model.precision == "fp16" and method.signal != "none" else None
    return {
        "run": resolved.run_id,
        "preset": resolved.preset,
        "budget": asdict(config.budget),
        "cost_per_epoch": epoch_work(resolved),
        "precision": {"dtype": config.model.precision, "initial_loss_scale": initial},
    } | ({"search": asdict(evaluation_work(resolved))} if method.signal == "none" else {})


def precision_text(dtype: str, initial_loss_scale: float | None) -> str:
    """Compute dtype of a run, and whether its gradients are scaled."""
    scaled = f", gradients scaled (initial scale {initial_loss_scale:.0f})" if initial_loss_scale else ""
    return f"precision: {dtype}{scaled}"


def _show_plan(resolved: Resolved, runtime: Runtime, as_json: bool) -> None:
    run = RunFolder(runtime.out / "runs" / resolved.run_id)
    needs = needed_memory(resolved, runtime)
    reading = read_from_files(resolved.config.model, prompts_of_run(resolved.config))
    data = plan(resolved) | {
        "memory": needs,
        "prompts": reading.as_data() if reading else None,
        "state": run.state,
        "config": resolved.data,
        "sources": resolved.sources,
    }
    if as_json:
        echo_json(data)
        return
    rows = [[key, value, resolved.sources.get(key, "default")] for key, value in flat_settings(resolved)]
    print_table(["setting", "value", "from"], rows, title=f"{resolved.run_id} ({run.state})")
    costs = [[key.replace("_", " "), f"{value:,}"] for key, value in data["cost_per_epoch"].items()]
    print_table(["one epoch costs", ""], costs)
    _print_memory(needs)
    if reading and reading.warning:
        click.echo(f"warning: {reading.warning}")
    click.echo(precision_text(**data["precision"]))
    if "search" in data:
        calls, images = data["search"]["outside_forward"], data["search"]["outside_images"]
        rewards = images * len(resolved.reward.parts)
        click.echo(
            f"trains nothing and uses none of the budget; its evaluation samples {images:,} candidates with "
            f"{calls:,} denoiser calls and {rewards:,} reward calls; nothing was run (--dry-run)"
        )
        return
    budget = resolved.config.budget
    click.echo(f"stops at {limit_text(budget.amount, budget.axis)}; nothing was run (--dry-run)")


def _print_memory(needs: dict[str, Any]) -> None:
    if "unknown" in needs:
        click.echo(f"memory: {needs['unknown']}")
        return
    many = needs["latents_in_a_call"]
    per = {f"{name}, {many[name]} at once": many[name] * size for name, size in needs["bytes_per_latent"].items()}
    parts = needs["fixed_bytes"] | per | {"at the peak": needs["peak_bytes"]} | needs["host_bytes"]
    rows = [[name, memory_estimate.gigabytes(size)] for name, size in parts.items()]
    print_table(
        [f"memory on {needs['device']} (estimate)", ""],
        [*rows, ["free now", memory_estimate.gigabytes(needs["free_bytes"])]],
    )
    if needs["warning"]:
        click.echo(f"warning: {needs['warning']}")


def flat_settings(resolved: Resolved) -> list[tuple[str, str]]:
    """``section.key`` and value of every setting of a run."""
    result = [("seed", str(resolved.config.seed))]
    for section, values in resolved.data.items():
        if not isinstance(values, dict):
            continue
        if section == "reward":  # all settings, those outside the identity too
            values = {"name": resolved.config.reward.name, "settings": resolved.config.reward.settings}
        nested = values if section not in ("method", "reward") else {"name": values["name"], **values["settings"]}
        result += [(f"{section}.{key}", _text(value)) for key, value in nested.items()]
    return result


def _text(value: Any) -> str:
    return ", ".join(str(v) for v in value) if isinstance(value, list) else str(value)
