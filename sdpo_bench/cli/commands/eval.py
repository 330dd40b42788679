"""What is done with a finished run: ``sdpo-bench eval`` judges it again, ``export`` hands its adapter on."""

from dataclasses import fields, replace
from pathlib import Path
from textwrap import indent
from typing import Any

import click

from sdpo_bench.cli.options import echo_json
from sdpo_bench.config.compatibility import refuse_reported
from sdpo_bench.errors import Unwritable, UsageError
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.evaluation.base_scores import base_folder, evaluate_base
from sdpo_bench.evaluation.inference_search import recorded_search
from sdpo_bench.evaluation.reward_scale import calibrate
from sdpo_bench.models.catalogue import known_model, load_policy, pick_device, refuse_changed, resolve_location
from sdpo_bench.models.cut_prompts import judged, read_by
from sdpo_bench.plugins.conflicts import refuse_two_values
from sdpo_bench.plugins.parse_settings import parse_set, validate
from sdpo_bench.plugins.setting_names import unknown_setting
from sdpo_bench.prompts.prompt_sets import held_prompts
from sdpo_bench.running.live import Live, print_step_table
from sdpo_bench.running.run_one import make_scorers
from sdpo_bench.running.source_check import refuse_changed_plugins
from sdpo_bench.runs.adapter import LORA_FILE, check_seal, exported, require_adapter
from sdpo_bench.runs.input_digests import known_prompts, remember_prompts
from sdpo_bench.runs.run_folder import RunFolder, check_writable, find_run
from sdpo_bench.runs.saved_adapter import load_adapter, read_adapter
from sdpo_bench.scoring.reward_expression import same_reward
from sdpo_bench.scoring.weighted_sum import Basis
from sdpo_bench.seeds import seed_for
from sdpo_bench.settings import EvaluationSettings, ModelSettings, Runtime, ScheduleSettings
from sdpo_bench.system.files import atomic_write
from sdpo_bench.system.memory_retry import halving
from sdpo_bench.system.output_paths import user_file
from sdpo_bench.system.progress import Watcher
from sdpo_bench.training import collapse_guards


def eval_command(
    *,
    runs: tuple[str, ...],
    steps: str | None,
    rewards: str | None,
    images: int | None,
    unseen: str | None,
    validation: str | None,
    sets: tuple[str, ...],
    out: Path,
    device: str,
    threads: int,
    micro_batch: int,
    reward_timeout: float,
    as_json: bool,
) -> None:
    """``sdpo-bench eval``."""
    changes: dict[str, Any] = {"steps": steps, "images_per_prompt": images, "unseen": unseen, "validation": validation}
    overrides = parse_set(sets)
    flags = {f"eval.{key}": (f"--{key.partition('_')[0]} {value}", value) for key, value in changes.items()}
    refuse_two_values(overrides, flags | {"eval.rewards": (f"--rewards {rewards}", rewards)})
    for key, value in overrides.items():
        if not key.startswith("eval."):
            raise UsageError(f"--set {key}: only eval.* settings can change here; training is done.")
        if key not in (valid := [f"eval.{field.name}" for field in fields(EvaluationSettings)]):
            raise unknown_setting(key, valid)
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
    if folder.path.parent.name == "runs":  # named by its path: its base model's scores are beside it
        runtime = replace(runtime, out=folder.path.parent.parent)
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
        return ev.recorded_table(folder, base, settings, scorers, refused), trained
    say = lambda text: click.echo(f"warning: {text}", err=True)  # noqa: E731
    refuse_changed_plugins(folder, base, settings, scorers, trains=False, warn=say)
    policy = load_policy(model, device=device, lora_seed=seed_for(config["seed"], "lora"))
    if warning := read_by(policy.pipeline, judged(settings)).warning:
        say(warning)
    with Live(folder.run_id) as live:
        watcher = Watcher(live.tick, live.evaluation)
        recorded = record.get("reward_reference", {})
        calibrate(scorers, policy, runtime.out, recorded, micro_batch=runtime.micro_batch, progress=live.evaluation)
        subject = ev.Subject(folder.run_id, config["method"]["name"], config["seed"])

        def judge(size: int) -> list[dict[str, Any]]:
            fitting = replace(runtime, micro_batch=size)
            before = evaluate_base(policy, model, settings, scorers, fitting, watcher, device=device)
            load_adapter(policy, folder.lora)
            with folder.locked():
                remember_prompts(folder, settings)
                tuned = ev.evaluate(
                    policy,
                    settings,
                    scorers,
                    folder,
                    subject,
                    micro_batch=size,
                    progress=live.evaluation,
                    search=search,
                )
                if exported(folder) and folder.known_state in ("failed", "unknown"):  # its judging had failed
                    folder.set_status("done", warnings=len(collapse_guards.warnings(folder)))
            return ev.step_table(before, tuned)

        table = halving(judge, runtime.micro_batch, lambda size, text: say(text))
    return table, trained


def export_command(run_name: str, target: Path, force: bool, out: Path) -> None:
    """``sdpo-bench export``."""
    folder = find_run(out, run_name)
    require_adapter(folder)
    destination = user_file(target / LORA_FILE, out, "--to")
    if destination.exists() and not force:
        raise UsageError(f"'{destination}' is already there. Use --force to overwrite it.")
    check_seal(folder.lora)
    adapter = read_adapter(folder.lora)
    if adapter.notice:
        click.echo(f"note: {adapter.notice}.", err=True)
    destination.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(destination, adapter.to_bytes())
    model: ModelSettings = validate(ModelSettings, folder.record()["config"]["model"], "model")
    click.echo(f"In Python:\n{indent(loading_code(model, target), '  ')}")
    click.echo(str(target / LORA_FILE))


def loading_code(model: ModelSettings, folder: Path) -> str:
    """Python code that makes ``pipeline``, stock diffusers' pipeline of the base model with the adapter in ``folder``.

    The type is said for every part: without it transformers keeps a text encoder that is stored in half precision so.
    """
    location = resolve_location(known_model(model.name))
    revision = f", revision={model.revision!r}" if model.revision else ""
    return (
        "import torch\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipeline = DiffusionPipeline.from_pretrained({location!r}{revision}, dtype=torch.float32)\n"
        f"pipeline.load_lora_weights({str(folder)!r}, weight_name={LORA_FILE!r})"
    )
