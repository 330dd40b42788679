"""What the commands that need torch do; imported by the command line only when one of them is called."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from sdpo_bench import evaluate as ev
from sdpo_bench import guards, memory
from sdpo_bench.atomic import atomic_write
from sdpo_bench.bill import (
    add_bills,
    bill_text,
    part_correlation,
    part_lines,
    reference_lines,
    search_bill,
    search_lines,
)  # fmt: skip
from sdpo_bench.budget import limit_text, parse_budget
from sdpo_bench.calibration import calibrate
from sdpo_bench.candidates import recorded_search
from sdpo_bench.cli_options import echo_json
from sdpo_bench.composite import Basis
from sdpo_bench.config import Request, Resolved, resolve
from sdpo_bench.contradictions import refuse_two_values
from sdpo_bench.errors import MissingError, Unwritable, UsageError
from sdpo_bench.estimate import epoch_work, evaluation_work, make_method
from sdpo_bench.fit import refuse_reported
from sdpo_bench.inputs import known_prompts, remember_prompts
from sdpo_bench.kept import kept_table
from sdpo_bench.models import load_policy, pick_device, pipeline_files, refuse_changed
from sdpo_bench.out_of_memory import halving
from sdpo_bench.plugin_sources import refuse_changed_plugins
from sdpo_bench.processes import launched
from sdpo_bench.progress import Watcher
from sdpo_bench.prompts import held_prompts
from sdpo_bench.regular import read_bytes
from sdpo_bench.reward_choice import same_reward
from sdpo_bench.runner import Outcome, base_folder, evaluate_base, make_scorers, run_cell
from sdpo_bench.seeds import seed_for
from sdpo_bench.setting_values import parse_set, validate
from sdpo_bench.settings import EvaluationSettings, ModelSettings, Runtime, ScheduleSettings
from sdpo_bench.store import RunFolder, check_writable, find_run
from sdpo_bench.terminal import Live, print_step_table, print_table
from sdpo_bench.trained_adapter import LORA_FILE, check_seal, exported, log_changed, require_adapter
from sdpo_bench.training_schedule import training_schedule
from sdpo_bench.user_files import user_file


def run_command(
    *, method: str | None, reward: str | None, model: str | None, preset: str | None, seed: int | None,
    budget: str | None, sets: tuple[str, ...], dry_run: bool, out: Path, device: str, threads: int, micro_batch: int,
    checkpoint_every: int, reward_timeout: float, async_rewards: bool, as_json: bool,
) -> None:  # fmt: skip
    """``sdpo-bench run``."""
    overrides = parse_set(sets)
    _refuse_contradictions(overrides, method=method, reward=reward, model=model, seed=seed, budget=budget)
    if budget:
        axis, amount = parse_budget(budget)
        overrides[f"budget.{axis}"] = amount
    resolved = resolve(Request(method, reward, model, preset, seed, overrides))
    runtime = Runtime(out, device, micro_batch, checkpoint_every, threads, reward_timeout, async_rewards)
    if dry_run:
        _show_plan(resolved, runtime, as_json)
        return
    label = f"{resolved.config.method.name} on {resolved.reward_name}"
    with launched(pick_device(device)) as processes:
        if processes.is_main:
            _say_memory(resolved, runtime, processes.count)
        with Live(label, quiet=not processes.is_main) as live:
            outcome = run_cell(resolved, runtime, Watcher(live.tick, live.evaluation), processes)
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
                "validation": outcome.run.log("validation.jsonl"),
                "training_seconds": seconds,
                "warnings": [vars(warned) for warned in guards.warnings(outcome.run)],
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
    for line in search_lines(outcome.run.path):
        click.echo(line)
    for line in reference_lines(outcome.run.record().get("reward_reference", {})):
        click.echo(line)
    if candidates := outcome.run.log("validation.jsonl"):
        click.echo(choice_text(candidates, _collapse(resolved, outcome)))
    if changed := log_changed(outcome.run):
        click.echo(f"warning: {changed}.")
    for warned in guards.warnings(outcome.run):
        click.echo(f"warning: epoch {warned.epoch}: {warned.text}")
    click.echo(f"evaluation sampler: {ev.sampler_id(resolved.config.eval)}")
    click.echo(f"picture grid: {outcome.run.path / 'grid.png'}")
    click.echo(str(outcome.run.path))


def needed_memory(resolved: Resolved, runtime: Runtime) -> dict[str, Any]:
    """Estimated memory of a run on its device as plain data, with a warning where it will hardly fit."""
    model, device = resolved.config.model, pick_device(runtime.device)
    needed = memory.estimate(resolved.config, runtime.micro_batch, device)
    if needed is None:
        return {"unknown": f"the architecture of '{model.name}' is not known before it is fetched"}
    free = memory.available_bytes(device)
    data = needed.as_data() | {"device": device, "free_bytes": free}
    try:
        return data | {"warning": memory.check(needed, free, model)}
    except MissingError as error:
        return data | {"warning": str(error)}


def _say_memory(resolved: Resolved, runtime: Runtime, processes: int = 1) -> None:
    """One line on standard error before anything is loaded.

    Raises:
        MissingError: the run cannot fit.
    """
    device = pick_device(runtime.device)
    needed = memory.estimate(resolved.config, runtime.micro_batch, device, processes)
    if needed is None:
        return
    alone = processes == 1 or device.startswith("cuda")
    shared = 1 if alone else max(1, int(os.environ.get("LOCAL_WORLD_SIZE", processes)))
    free = memory.available_bytes(device) / shared
    warning = memory.check(needed, free, resolved.config.model)
    text = f"memory: about {memory.gigabytes(needed.total)} of {memory.gigabytes(free)} free on {device}"
    text += f", each of {processes} processes" if processes > 1 else ""
    with suppress(OSError):  # as in Live: words on the way are no reason to end
        click.echo(f"warning: {warning}" if warning else text, err=True)


def _collapse(resolved: Resolved, outcome: Outcome) -> int | None:
    """The epoch before which the checkpoint had to be chosen; ``None`` where there was none."""
    chosen = resolved.config.checkpoint
    return guards.collapsed_at(outcome.run) if chosen and chosen.choose == "before-collapse" else None


def choice_text(candidates: list[dict[str, Any]], collapse: int | None = None) -> str:
    """Which checkpoint was chosen, from how many, at what cost beside the training bill."""
    best = guards.before_collapse(candidates, collapse)
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
    scheduler = dict(files.configs.get("scheduler", {})) if files else {}
    training_schedule(config, scheduler, method)  # refuses what cannot be trained on
    return {
        "run": resolved.run_id,
        "preset": resolved.preset,
        "budget": asdict(config.budget),
        "cost_per_epoch": epoch_work(resolved),
    } | ({"search": asdict(evaluation_work(resolved))} if method.signal == "none" else {})


def _show_plan(resolved: Resolved, runtime: Runtime, as_json: bool) -> None:
    run = RunFolder(runtime.out / "runs" / resolved.run_id)
    needs = needed_memory(resolved, runtime)
    data = plan(resolved) | {"memory": needs, "state": run.state, "config": resolved.data, "sources": resolved.sources}
    if as_json:
        echo_json(data)
        return
    rows = [[key, value, resolved.sources.get(key, "default")] for key, value in flat_settings(resolved)]
    print_table(["setting", "value", "from"], rows, title=f"{resolved.run_id} ({run.state})")
    costs = [[key.replace("_", " "), f"{value:,}"] for key, value in data["cost_per_epoch"].items()]
    print_table(["one epoch costs", ""], costs)
    _print_memory(needs)
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
    rows = [[name, memory.gigabytes(size)] for name, size in parts.items()]
    print_table(
        [f"memory on {needs['device']} (estimate)", ""], [*rows, ["free now", memory.gigabytes(needs["free_bytes"])]]
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


# -- eval, export --------------------------------------------------------------------------------------------


def eval_command(
    *, runs: tuple[str, ...], steps: str | None, rewards: str | None, images: int | None, unseen: str | None,
    validation: str | None, sets: tuple[str, ...], out: Path, device: str, threads: int, micro_batch: int,
    reward_timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """``sdpo-bench eval``."""
    changes: dict[str, Any] = {"steps": steps, "images_per_prompt": images, "unseen": unseen, "validation": validation}
    overrides = parse_set(sets)
    flags = {f"eval.{key}": (f"--{key.partition('_')[0]} {value}", value) for key, value in changes.items()}
    refuse_two_values(overrides, flags | {"eval.rewards": (f"--rewards {rewards}", rewards)})
    for key, value in overrides.items():
        if not key.startswith("eval."):
            raise UsageError(f"--set {key}: only eval.* settings can change here; training is done.")
        changes[key.removeprefix("eval.")] = value
    folders = [find_run(out, name) for name in runs]
    runtime = Runtime(out, device, micro_batch, threads=threads, reward_timeout=reward_timeout)
    results = []
    for folder in folders:
        with held_prompts(known_prompts(folder), folder.run_id):
            table, trained = _eval_one(folder, {k: v for k, v in changes.items() if v is not None}, rewards, runtime)
        results.append({"run": folder.run_id, "folder": folder.path, "table": table})
        if not as_json:
            click.echo(f"\n{folder.run_id}")
            print_step_table(table, trained)
            click.echo(str(folder.evaluation))
    if as_json:
        echo_json(results)


def _eval_one(
    folder: RunFolder, changes: dict[str, Any], rewards: str | None, runtime: Runtime
) -> tuple[list[dict[str, Any]], str]:
    require_adapter(folder)
    record = folder.record()
    config = record["config"]
    settings: EvaluationSettings = validate(EvaluationSettings, config["eval"] | changes, "eval")
    if chosen := config.get("checkpoint"):
        refuse_reported(chosen["prompts"], settings, f"'{folder.run_id}' was chosen on checkpoint.prompts, and this")
    model: ModelSettings = validate(ModelSettings, config["model"], "model")
    refuse_changed(model, record)
    device = pick_device(runtime.device)
    trained = config["reward"]["name"]
    names = [trained, *settings.rewards] if rewards is None else [n.strip() for n in rewards.split(",") if n.strip()]
    if not names:
        raise UsageError(f"--rewards '{rewards}' names no reward. See: sdpo-bench list rewards")
    own = record.get("reward_execution", config["reward"])
    wanted = [(own["name"], own["settings"]) if same_reward(name, trained) else (name, {}) for name in names]
    if "search" in record:  # what it chooses by is scored whatever was asked for
        wanted.append((own["name"], own["settings"]))
    basis = Basis(model, validate(ScheduleSettings, config["schedule"], "schedule"), str(config["sample"]["prompts"]))
    scorers = make_scorers(wanted, basis, device, runtime.reward_timeout)
    settings = replace(settings, rewards=tuple(names))
    search = None
    if "search" in record:
        search = recorded_search(config, next(s for s in scorers if same_reward(s.name, trained)))
    base = base_folder(model, settings, runtime)
    try:
        check_writable(runtime.out, folder, base)
    except Unwritable as refused:
        there = base_folder(model, settings, replace(runtime, out=folder.path.parent.parent))
        return kept_table(folder, there, settings, scorers, refused), trained
    say = lambda text: click.echo(f"warning: {text}", err=True)  # noqa: E731
    refuse_changed_plugins(folder, base, settings, scorers, trains=False, warn=say)
    policy = load_policy(model, device=device, lora_seed=seed_for(config["seed"], "lora"))
    with Live(folder.run_id) as live:
        watcher = Watcher(live.tick, live.evaluation)
        recorded = record.get("reward_reference", {})
        calibrate(scorers, policy, runtime.out, recorded, micro_batch=runtime.micro_batch, progress=live.evaluation)
        subject = ev.Subject(folder.run_id, config["method"]["name"], config["seed"])

        def judge(size: int) -> list[dict[str, Any]]:
            fitting = replace(runtime, micro_batch=size)
            before = evaluate_base(policy, model, settings, scorers, fitting, watcher, device=device)
            policy.load(folder.lora)
            with folder.locked():
                remember_prompts(folder, settings)
                tuned = ev.evaluate(
                    policy, settings, scorers, folder, subject,
                    micro_batch=size, progress=live.evaluation, search=search,
                )  # fmt: skip
                if exported(folder) and folder.known_state in ("failed", "unknown"):  # its judging had failed
                    folder.set_status("done", warnings=len(guards.warnings(folder)))
            return ev.step_table(before, tuned)

        table = halving(judge, runtime.micro_batch, lambda size, text: say(text))
    return table, trained


def export_command(run_name: str, target: Path, force: bool, out: Path) -> None:
    """``sdpo-bench export``."""
    folder = find_run(out, run_name)
    require_adapter(folder)
    source = folder.lora / LORA_FILE
    destination = user_file(target / LORA_FILE, out, "--to")
    if destination.exists() and not force:
        raise UsageError(f"'{destination}' is already there. Use --force to overwrite it.")
    check_seal(folder.lora)
    destination.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(destination, read_bytes(source))
    config = folder.record()["config"]
    click.echo(
        f"In Python, with a pipeline of {config['model']['name']}:\n"
        f'  pipeline.load_lora_weights("{target}", weight_name="{LORA_FILE}")'
    )
    click.echo(str(target / LORA_FILE))
