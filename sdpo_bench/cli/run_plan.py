"""``sdpo-bench run --dry-run``: settings, cost, time, memory and missing weights of a run that is not started."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import click

from sdpo_bench.cli.commands.fetch import items_of
from sdpo_bench.cli.options import echo_json
from sdpo_bench.config.differences import differs_from_default
from sdpo_bench.config.presets import automatic_preset, find_preset, shipped_presets
from sdpo_bench.config.resolve import Resolved
from sdpo_bench.config.run_file import RunFile
from sdpo_bench.config.sampler_fit import planning_scheduler
from sdpo_bench.config.split_prompts import split_warning
from sdpo_bench.config.training_schedule import training_schedule
from sdpo_bench.errors import MissingError, SdpoBenchError, UsageError
from sdpo_bench.estimates import memory_estimate
from sdpo_bench.estimates.time_estimate import (
    Rates,
    base_work,
    epoch_work,
    evaluation_work,
    make_method,
    outside_seconds,
    reward_keys,
    run_work,
    seconds,
)
from sdpo_bench.ledger import AXES, limit_text
from sdpo_bench.models.base_model import pick_device, pipeline_files
from sdpo_bench.models.cut_prompts import prompts_of_run, read_from_files
from sdpo_bench.models.known_models import KNOWN
from sdpo_bench.plugins.parse_settings import validate
from sdpo_bench.plugins.registry import find, plugin_tag
from sdpo_bench.rollout.sde_steps import changes_by_epoch
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.reward_expression import choose
from sdpo_bench.settings import ModelSettings, Runtime
from sdpo_bench.system.console_text import duration, gigabytes, print_table
from sdpo_bench.training.loss_scale import INITIAL

ON_CPU = 8  # latents in a call that is timed: a CPU is as fast with few
UNITS = {"GB": 1e9, "GIB": 2**30, "MB": 1e6, "MIB": 2**20}


PLANNED = "a GPU"
"""The device of a plan for ``--for-gpu``."""


def parse_memory(text: str) -> float:
    """``"40GB"`` in bytes; GB, GiB, MB and MiB are understood.

    Raises:
        UsageError: not a positive amount of memory.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(GB|GiB|MB|MiB)\s*", text, re.IGNORECASE)
    size = float(match[1]) * UNITS[match[2].upper()] if match else 0.0
    if not size:
        raise UsageError(f"--for-gpu takes the memory of a GPU, got '{text}'. Example: --for-gpu 40GB")
    return size


def needed_memory(resolved: Resolved, runtime: Runtime, gpu_bytes: float | None = None) -> dict[str, Any]:
    """Estimated memory of a run on its device as plain data, with a warning where it will hardly fit.

    Args:
        gpu_bytes: memory of a GPU that is not in this machine, to plan for.
    """
    model, device = resolved.config.model, "cuda" if gpu_bytes else pick_device(runtime.device)
    needed = memory_estimate.estimate(resolved.config, runtime.micro_batch, device)
    if needed is None:
        return {"unknown": f"the architecture of '{model.name}' is not known before it is fetched"}
    free = gpu_bytes or memory_estimate.available_bytes(device)
    data = needed.as_data() | {"device": PLANNED if gpu_bytes else device, "free_bytes": free}
    where = "are there" if gpu_bytes else "are free here"
    try:
        return data | {"warning": memory_estimate.check(needed, free, model, where)}
    except MissingError as error:
        return data | {"warning": str(error)}


def plan(resolved: Resolved) -> dict[str, Any]:
    """Cost of a run before it starts, from its settings alone.

    Raises:
        UsageError: a schedule that the method cannot be trained on.
    """
    from sdpo_bench.cli.sweep_view import costs_data  # with tables, which a run itself does without

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
        "cost": costs_data(run_work(resolved)),
        "precision": {"dtype": config.model.precision, "initial_loss_scale": initial},
    } | ({"search": asdict(evaluation_work(resolved))} if method.signal == "none" else {})


def default_rates_note(resolved: Resolved) -> str:
    """That a method trains at the common rate of a preset which has no section for it.

    Empty where its rate was set, is the method's own, or trains nothing.
    """
    name, source = resolved.config.method.name, resolved.sources.get("update.lr", "default")
    preset, method = shipped_presets().get(resolved.preset), find("methods", name).load()
    if preset is None or source != f"preset {preset.name}" or method.signal == "none":
        return ""
    if {plugin_tag(name), plugin_tag(method.variant_of)} & set(preset.by_method):
        return ""
    return (
        f"note: {name} trains at update.lr = {resolved.config.update.lr:g} of preset '{preset.name}', a rate that was "
        "neither searched nor published for it. Search one before you compare: sdpo-bench sweep search.toml "
        "(sdpo-bench new method NAME writes such a file)"
    )


def foreign_preset_note(resolved: Resolved, typed: str | None) -> str:
    """That the preset which was asked for is for another model or reward; empty where it fits or does not say.

    Args:
        typed: name or file of that preset; None: it was chosen as one that fits.
    """
    model, reward = resolved.config.model.name, resolved.config.reward.name
    preset = find_preset(typed) if typed else None
    if preset is None or not preset.match or preset.fits(model, reward):
        return ""
    names = [(key, preset.match[key]) for key in ("model", "reward") if key in preset.match]
    meant = [f"{key} {value if isinstance(value, str) else ' or '.join(value)}" for key, value in names]
    fitting = automatic_preset(model, reward)
    advice = f"--preset {fitting.name}" if fitting else "none of those here"
    return (
        f"note: preset '{preset.name}' is for {' with '.join(meant)}; this run has model {model} with reward {reward}. "
        f"The preset that fits: {advice}"
    )


def precision_text(dtype: str, initial_loss_scale: float | None) -> str:
    """Compute dtype of a run, and whether its gradients are scaled."""
    scaled = f", gradients scaled (initial scale {initial_loss_scale:.0f})" if initial_loss_scale else ""
    return f"precision: {dtype}{scaled}"


def missing_weights(resolved: Resolved) -> dict[str, Any]:
    """Rewards and base model whose weights are not in the hub cache, and the known size of the downloads in bytes."""
    config = resolved.config
    names = [config.model.name] if config.model.name in KNOWN else []
    for reward in (config.reward.name, *config.eval.rewards):
        names += [plugin.name for plugin, _ in choose(reward).parts]
    items = {name: [item for item in items_of(name) if not item.cached] for name in dict.fromkeys(names)}
    size = sum(item.size for several in items.values() for item in several)
    return {"names": [name for name, missing in items.items() if missing], "bytes": size}


def expected_seconds(resolved: Resolved, runtime: Runtime, missing: Sequence[str]) -> tuple[float | None, float, str]:
    """Time of a run on this machine, from a few calls that are timed now; its part for the base model; why unknown.

    Args:
        missing: names of weights that are not here; then nothing is timed.
    """
    if missing:
        return None, 0.0, f"the weights of {', '.join(missing)} are not here"
    try:
        device = pick_device(runtime.device)
        keys = tuple(sorted(reward_keys(resolved)[1]))
        rates = _rates(json.dumps(asdict(resolved.config.model)), keys, device, runtime.threads, runtime.micro_batch)
    except SdpoBenchError as error:
        return None, 0.0, str(error)
    from sdpo_bench.evaluation.base_scores import base_folder  # brings torch, as measuring does

    config = resolved.config
    scored = base_folder(config.model, config.eval, runtime).evaluation.exists()
    beside = scored or runtime.processes == 2  # a second process scores it while this one trains
    base = 0.0 if beside else outside_seconds(resolved, base_work(resolved), rates)
    return seconds(resolved, run_work(resolved), rates) + base, base, ""


@lru_cache
def _rates(model: str, rewards: tuple[str, ...], device: str, threads: int, micro_batch: int) -> Rates:
    import torch

    from sdpo_bench.estimates.measure_speed import measure

    if threads:
        torch.set_num_threads(threads)
    settings = validate(ModelSettings, json.loads(model), "model")
    batch = min(ON_CPU, micro_batch) if device == "cpu" else micro_batch
    return measure(settings, [json.loads(key) for key in rewards], device, batch)


def show_plan(
    resolved: Resolved,
    runtime: Runtime,
    as_json: bool,
    *,
    seeds: Sequence[int] = (),
    file: RunFile | None = None,
    gpu_bytes: float | None = None,
) -> None:
    """Print what a run, or one run a seed, would do.

    Args:
        resolved: of the first seed.
        seeds: of all runs; empty: one run.
        gpu_bytes: memory of a GPU to plan for that is not in this machine.
    """
    run = RunFolder(runtime.out / "runs" / resolved.run_id)
    needs = needed_memory(resolved, runtime, gpu_bytes)
    reading = read_from_files(resolved.config.model, prompts_of_run(resolved.config))
    splits = split_warning(resolved.config.sample.prompts, resolved.config.eval)
    missing = missing_weights(resolved)
    time, base, why = (
        (None, 0.0, "a GPU that is not here") if gpu_bytes else expected_seconds(resolved, runtime, missing["names"])
    )
    data = plan(resolved) | {
        "memory": needs,
        "missing_weights": missing,
        "seconds": time,
        "base_seconds": base,
        "no_time_because": why,
        "prompts": reading.as_data() if reading else None,
        "split_warning": splits or None,
        "state": run.state,
        "config": resolved.data,
        "sources": resolved.sources,
    }
    data |= {"seeds": list(seeds)} if seeds else {}
    if as_json:
        echo_json(data)
        return
    _print_settings(resolved, run.state, file)
    if len(seeds) > 1:
        click.echo(f"one run for each of the seeds {', '.join(map(str, seeds))}; this is the first")
    costs = [[key.replace("_", " "), f"{value:,}"] for key, value in data["cost_per_epoch"].items()]
    schedule = resolved.config.schedule
    moves = schedule.sampler == "flow" and changes_by_epoch(schedule.sde_steps)
    print_table(["one epoch costs" + (" (mean over the window's places)" if moves else ""), ""], costs)
    _print_memory(needs)
    if reading and reading.warning:
        click.echo(f"warning: {reading.warning}")
    if splits:
        click.echo(f"warning: {splits}")
    click.echo(precision_text(**data["precision"]))
    for line in _cost_lines(data, len(seeds) or 1):
        click.echo(line)
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


def _print_settings(resolved: Resolved, state: str, file: RunFile | None) -> None:
    """Two tables: the settings that are not their classes' defaults, then the others."""
    own: list[list[str]] = []
    usual: list[list[str]] = []
    for key, value, shown in flat_settings(resolved):
        source = resolved.sources.get(key, "default")
        place = file.place(key) if file and source == "you" and key in file.settings else source
        (own if differs_from_default(key, value, source) else usual).append([key, shown, place])
    print_table(["setting", "value", "from"], own, title=f"{resolved.run_id} ({state})")
    print_table(["setting at its default", "value", "from"], usual)


def _cost_lines(data: Mapping[str, Any], runs: int) -> list[str]:
    """Cost and time of the whole run, and the command that fetches what is missing."""
    each = " each" if runs > 1 else ""
    lines = []
    if data["cost"]["images"] is not None and "search" not in data:
        lines.append(_cost_line(data["cost"], runs))
    if data["seconds"] is None:
        lines.append(f"time: not known: {data['no_time_because']}")
    else:
        base = data["base_seconds"]
        own = data["seconds"] - (base if runs > 1 else 0.0)  # several runs score it once
        total = f", {duration(runs * own + base)} for {runs} runs" if runs > 1 else ""
        judged = f", {duration(base)} of it for the base model's scores" if base else ""
        lines.append(f"time: about {duration(own)}{each}{total}{judged} (measured here)")
    if names := data["missing_weights"]["names"]:
        size = data["missing_weights"]["bytes"]
        known = f" (about {size / 1e9:.1f} GB)" if size else ""
        lines.append(f"missing weights{known}: sdpo-bench fetch {' '.join(names)}")
    return lines


def _cost_line(cost: Mapping[str, Any], runs: int) -> str:
    """Cost of a whole run, of which there are ``runs``; ``cost`` as ``sweep_view.costs_data`` has it."""
    each = " each" if runs > 1 else ""
    training = ", ".join(f"{cost[axis]:,} {axis.replace('_', ' ')}" for axis in AXES if axis != "seconds")
    judged = f"{cost['evaluation_denoiser_calls']:,}"
    return f"the whole run costs{each} {training}; besides, {judged} denoiser calls to judge it"


def work_ahead(resolved: Resolved, runs: int, out: Path) -> str:
    """What a run costs, in a line for its start; empty where it is done, or where its settings do not say.

    Its time would have to be measured, for which the model is loaded once more, so that is left to ``--dry-run``.
    """
    work = run_work(resolved)
    done = RunFolder(out / "runs" / resolved.run_id).state_or_unknown == "done"
    if work is None or done or make_method(resolved).signal == "none":
        return ""
    cost = {axis: getattr(work, axis) for axis in AXES if axis != "seconds"}
    line = _cost_line(cost | {"evaluation_denoiser_calls": work.outside_forward}, runs)
    return f"{line} (--dry-run estimates the time)"


def _print_memory(needs: dict[str, Any]) -> None:
    if "unknown" in needs:
        click.echo(f"memory: {needs['unknown']}")
        return
    many = needs["latents_in_a_call"]
    per = {f"{name}, {many[name]} at once": many[name] * size for name, size in needs["bytes_per_latent"].items()}
    parts = needs["fixed_bytes"] | per | {"at the peak": needs["peak_bytes"]} | needs["host_bytes"]
    rows = [[name, gigabytes(size)] for name, size in parts.items()]
    available = gigabytes(needs["free_bytes"])
    planned = needs["device"] == PLANNED
    print_table(
        [f"memory on {needs['device']} (estimate)", ""],
        [*rows, ["of the GPU, --for-gpu" if planned else "free now", available]],
    )
    if needs["warning"]:
        click.echo(f"warning: {needs['warning']}")
    elif planned:
        click.echo(f"fits a GPU of {available}")


def flat_settings(resolved: Resolved) -> list[tuple[str, Any, str]]:
    """``section.key``, value and its text of every setting of a run."""
    result = [("seed", resolved.config.seed)]
    for section, values in resolved.data.items():
        if not isinstance(values, dict):
            continue
        if section == "reward":  # all settings, those outside the identity too
            values = {"name": resolved.config.reward.name, "settings": resolved.config.reward.settings}
        nested = values if section not in ("method", "reward") else {"name": values["name"], **values["settings"]}
        result += [(f"{section}.{key}", value) for key, value in nested.items()]
    return [(key, value, _text(value)) for key, value in result]


def _text(value: Any) -> str:
    return ", ".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)
