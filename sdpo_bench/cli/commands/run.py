"""``sdpo-bench run``: its plan, its memory, its outcome; imported only when it is called, since it needs torch."""

import math
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from sdpo_bench.cli.options import echo_json, parse_seeds
from sdpo_bench.cli.run_plan import default_rates_note, foreign_preset_note, parse_memory, show_plan, work_ahead
from sdpo_bench.config.resolve import Request, Resolved, resolve
from sdpo_bench.config.run_file import RunFile, read_run_file, replaced_settings, run_file_text
from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.errors import MissingError, RunFailed, Unwritable, UsageError
from sdpo_bench.estimates import memory_estimate
from sdpo_bench.ledger import parse_budget
from sdpo_bench.library.runs import run_with_progress
from sdpo_bench.models.base_model import pick_device
from sdpo_bench.plugins.conflicts import refuse_two_values
from sdpo_bench.plugins.parse_settings import parse_set
from sdpo_bench.running.live import print_step_table
from sdpo_bench.running.run_one import Outcome
from sdpo_bench.running.tracking import replaced_trackers, split_settings, track_settings
from sdpo_bench.runs.adapter import log_changed
from sdpo_bench.runs.run_folder import CURVE
from sdpo_bench.settings import Runtime, TrackSettings
from sdpo_bench.system.console_text import gigabytes, number, print_table
from sdpo_bench.system.distributed import Processes, launched
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.output_paths import user_file
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


def run_command(
    *,
    method: str | None,
    reward: str | None,
    model: str | None,
    preset: str | None,
    seed: int | None,
    seeds: str | None,
    budget: str | None,
    sets: tuple[str, ...],
    config_file: Path | None,
    write_config: Path | None,
    track: tuple[str, ...],
    dry_run: bool,
    for_gpu: str | None,
    out: Path,
    device: str,
    threads: int,
    micro_batch: int,
    checkpoint_every: int,
    reward_timeout: float,
    async_rewards: bool,
    processes: int,
    as_json: bool,
) -> None:
    """``sdpo-bench run``."""
    tracked, overrides = split_settings(parse_set(sets))
    _refuse_contradictions(overrides, method=method, reward=reward, model=model, seed=seed, budget=budget)
    several = _several_seeds(seeds, seed, overrides)
    gpu_bytes = _planned_gpu(for_gpu, dry_run, device)
    file = read_run_file(config_file) if config_file else None
    if file:
        flags = {"method.name": method, "reward.name": reward, "model.name": model, "preset": preset, "seed": seed}
        filed, others = split_settings(file.settings)
        file = replace(file, settings=others)
        _say_replaced(file, overrides, flags, budget)
        if line := replaced_trackers(track, filed):
            click.echo(f"{line} of {file.place('track.to')}", err=True)
        tracked = filed | tracked
    trackers = track_settings(tracked, track)
    if budget:
        axis, amount = parse_budget(budget)
        overrides[f"budget.{axis}"] = amount
    request = Request(method, reward, model, preset, several[0] if several else seed, overrides, file)
    resolved = resolve(request)
    if write_config:
        _write_config(resolved, write_config, config_file, out)
    untouched = not (overrides or several) and all(one is None for one in (method, reward, model, preset, seed))
    if file and file.record and untouched and resolved.run_id != file.record["run"]:
        click.echo(
            f"note: this is not run {file.record['run']} again: the reward's version, a prompt file, the model's "
            "folder or the settings that there are have changed since",
            err=True,
        )
    foreign = foreign_preset_note(resolved, preset or (file.preset if file else None))
    for note in filter(None, (foreign, default_rates_note(resolved))):
        click.echo(note, err=True)
    runtime = Runtime(out, device, micro_batch, checkpoint_every, threads, reward_timeout, async_rewards, processes)
    if dry_run:
        show_plan(resolved, runtime, as_json, seeds=several, file=file, gpu_bytes=gpu_bytes)
        return
    with launched(pick_device(device)) as group:
        if group.is_main:
            _show_needed_memory(resolved, runtime, group.count)
            if line := work_ahead(resolved, len(several) or 1, out):
                click.echo(line, err=True)
        if several:
            runs = [resolve(replace(request, seed=one)) for one in several]
            run_seeds(runs, runtime, trackers, group, as_json)
            return
        outcome = run_with_progress(resolved, runtime, trackers, group)
        if group.is_main:
            _say_no_curve(resolved, outcome)
            _show_outcome(resolved, outcome, as_json)


def run_seeds(
    runs: Sequence[Resolved], runtime: Runtime, trackers: TrackSettings, processes: Processes, as_json: bool
) -> None:
    """One run after the other, and one summary; a run that fails alone stops none of the others.

    Raises:
        RunFailed: at the end, where a run has failed.
    """
    outcomes: dict[int, Outcome | RunFailed] = {}
    for count, resolved in enumerate(runs, 1):
        seed = resolved.config.seed
        if processes.is_main:
            click.echo(f"run {count} of {len(runs)}, seed {seed}: {resolved.run_id}", err=True)
        try:
            outcomes[seed] = outcome = run_with_progress(resolved, runtime, trackers, processes)
            if processes.is_main:
                _say_no_curve(resolved, outcome)
        except RunFailed as error:
            if processes.count > 1:  # the others may be in the middle of the run
                raise
            click.echo(f"seed {seed} failed: {error}", err=True)
            outcomes[seed] = error
    if processes.is_main:
        show_seeds(runs, outcomes, runtime.out, as_json)
    if failed := [seed for seed, outcome in outcomes.items() if isinstance(outcome, RunFailed)]:
        raise RunFailed(f"{len(failed)} of {len(runs)} runs failed: seed {', '.join(map(str, failed))}.")


def _several_seeds(seeds: str | None, seed: int | None, overrides: Mapping[str, Any]) -> tuple[int, ...]:
    """The seeds of ``--seeds``; empty where one run is asked for."""
    if seeds is None:
        return ()
    if seed is not None or "seed" in overrides:
        raise UsageError(f"--seeds {seeds} and a single seed contradict each other. Give one of them.")
    return parse_seeds(seeds)


def _planned_gpu(for_gpu: str | None, dry_run: bool, device: str) -> float | None:
    """Memory in bytes of the GPU of ``--for-gpu``."""
    if for_gpu is None:
        return None
    if not dry_run or device != "auto":
        raise UsageError("--for-gpu plans for a GPU that is not here: give it with --dry-run and without --device.")
    return parse_memory(for_gpu)


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


def _say_no_curve(resolved: Resolved, outcome: Outcome) -> None:
    """A run is judged again as often as one likes, but its learning curve is measured while it trains."""
    every = resolved.config.eval.every
    if every and outcome.run.log() and not outcome.run.log(CURVE):
        click.echo(
            f"note: eval.every={every} has no effect: this run was trained without a learning curve. The same command "
            "with another --seed or --out FOLDER measures one",
            err=True,
        )


def _show_outcome(resolved: Resolved, outcome: Outcome, as_json: bool) -> None:
    rows, bill = outcome.run.log(), bill_of(outcome)
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
    from sdpo_bench.results.comparability import sampler_words  # brings scipy, which a run does not wait for

    print_step_table(outcome.table, resolved.reward_name)
    if not outcome.trained_now:
        click.echo("The training of this run was done before; nothing was trained. Another --seed gives a new run.")
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
    click.echo(f"evaluation sampler: {sampler_words(sampler_id(resolved.config.eval))}")
    click.echo(f"picture grid: {outcome.run.path / 'grid.png'}")
    click.echo(str(outcome.run.path))
    if outcome.trained_now:
        click.echo(next_steps(outcome.run.run_id, outcome.run.path.parents[1]), err=True)


def next_steps(run_id: str, out: Path) -> str:
    """What usually follows a run, in a line."""
    where = _results_option(out)
    return (
        f"next: sdpo-bench report --format html{where} (page); sdpo-bench compare {run_id} base{where} (the gain); "
        "the same command with --seeds 0-4 (interval over seeds) or with another --method (comparison)"
    )


def _results_option(out: Path) -> str:
    """What makes a command read the results folder ``out``; empty for the default."""
    return "" if out.resolve() == Path("results").resolve() else f" --results {shlex.quote(str(out))}"


def bill_of(outcome: Outcome) -> dict[str, Any]:
    """The bill of a run's training, or of a search."""
    rows = outcome.run.log()
    return add_bills([rows[-1]["bill"] if rows else {}, search_bill(outcome.run.path)])


def gain_of(outcome: Outcome, trained: str) -> float | None:
    """Tuned minus base under the trained reward, mean over step counts, on the first split; None without scores.

    Args:
        trained: ``NAME/VERSION`` of that reward.
    """
    rows, split = _rows_by(outcome, trained), first_split(outcome, trained)
    differences = [row["difference"] for row in rows if row["split"] == split]
    return sum(differences) / len(differences) if differences else None


def first_split(outcome: Outcome, trained: str) -> str | None:
    """The split that :func:`gain_of` takes: training prompts before validation and unseen ones."""
    splits = {row["split"] for row in _rows_by(outcome, trained)}
    return next((name for name in ("train", "validation", "unseen") if name in splits), None)


def _rows_by(outcome: Outcome, trained: str) -> list[dict[str, Any]]:
    return [row for row in outcome.table if f"{row['reward']}/{row['version']}" == trained]


def show_seeds(runs: Sequence[Resolved], outcomes: Mapping[int, Outcome | RunFailed], out: Path, as_json: bool) -> None:
    """The summary of ``--seeds``: one row a run, the mean over seeds, the whole bill."""
    method, reward = runs[0].config.method.name, runs[0].reward_name
    done = {seed: outcome for seed, outcome in outcomes.items() if isinstance(outcome, Outcome)}
    gains = {seed: gain_of(outcome, runs[0].versions["reward"]) for seed, outcome in done.items()}
    known = [gain for gain in gains.values() if gain is not None]
    mean = statistics.fmean(known) if known else None
    spread = statistics.stdev(known) if len(known) > 1 else None
    bill, seconds = add_bills(map(bill_of, done.values())), sum(one.run.seconds for one in done.values())
    if as_json:
        cells = [
            {
                "run": resolved.run_id,
                "seed": resolved.config.seed,
                "state": "done" if resolved.config.seed in done else "failed",
                "gain": gains.get(resolved.config.seed),
                "table": done[resolved.config.seed].table if resolved.config.seed in done else [],
            }
            for resolved in runs
        ]
        summary = {"mean_gain": mean, "standard_deviation": spread, "bill": bill, "training_seconds": seconds}
        echo_json({"runs": cells, **summary})
        return
    rows = [
        [
            str(one.config.seed),
            number(_or_nan(gains.get(one.config.seed))),
            _state(outcomes[one.config.seed]),
            one.run_id,
        ]
        for one in runs
    ]
    split = next((first_split(outcome, runs[0].versions["reward"]) for outcome in done.values()), None)
    prompts = f", {split} prompts" if split else ""
    title = f"{method} on {reward}{prompts}, mean over step counts"
    print_table(["seed", "score - base", "state", "run"], rows, title=title)
    if mean is not None:
        spread_text = (
            f", standard deviation over {len(known)} training seeds {spread:.3f}" if spread is not None else ""
        )
        click.echo(f"score - base: {mean:+.3f}{spread_text}")
    together = f"{len(done)} runs together, " if len(done) > 1 else ""
    click.echo(f"{together}{bill_text(bill, seconds)}")
    click.echo(f"interval and verdict: sdpo-bench compare {method} base{_results_option(out)}")


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _state(outcome: Outcome | RunFailed) -> str:
    if isinstance(outcome, RunFailed):
        return "failed"
    return "done" if outcome.trained_now else "done before"


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
    size = gigabytes
    text = f"memory: needs about {size(needed.total)}; {size(free)} are free on {device}"
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
