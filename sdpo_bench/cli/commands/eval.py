"""``sdpo-bench eval``: judge a finished run again."""

from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from sdpo_bench.cli.options import echo_json
from sdpo_bench.config.compatibility import refuse_reported
from sdpo_bench.config.split_prompts import split_warning
from sdpo_bench.errors import SdpoBenchError, Unwritable, UsageError
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.evaluation.base_scores import base_folder, evaluate_base
from sdpo_bench.evaluation.reward_scale import calibrate
from sdpo_bench.evaluation.score_rows import step_table
from sdpo_bench.models.base_model import pick_device
from sdpo_bench.models.cut_prompts import judged, read_by
from sdpo_bench.models.policy import Policy
from sdpo_bench.plugins.conflicts import refuse_two_values
from sdpo_bench.plugins.parse_settings import parse_set
from sdpo_bench.plugins.setting_names import unknown_setting
from sdpo_bench.prompts.prompt_sets import prompt_cache
from sdpo_bench.running.evaluation_process import set_threads
from sdpo_bench.running.finished_run import FinishedRun, open_finished_run
from sdpo_bench.running.live import Live, print_step_table
from sdpo_bench.running.source_check import refuse_changed_plugins, refuse_other_weights
from sdpo_bench.runs.adapter import exported
from sdpo_bench.runs.input_digests import record_prompt_digests, recorded_prompt_digests
from sdpo_bench.runs.run_folder import RunFolder, check_writable, find_run
from sdpo_bench.runs.saved_adapter import load_adapter
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.settings import CURVE_KEYS, EvaluationSettings, Runtime
from sdpo_bench.system.memory_retry import halving
from sdpo_bench.system.progress import RunPlan, Watcher
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
        if key in CURVE_KEYS:
            raise UsageError(f"--set {key}: the learning curve is measured during training, which is done.")
        changes[key.removeprefix("eval.")] = value
    folders = [find_run(out, name) for name in runs]
    runtime = Runtime(out, device, micro_batch, threads=threads, reward_timeout=reward_timeout)
    results = []
    for folder in folders:
        with prompt_cache(recorded_prompt_digests(folder), folder.run_id):
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
    """Table of one run by the changed settings, and the name of its trained reward."""
    run = open_finished_run(folder, changes)
    if folder.path.parent.name == "runs":  # named by its path: its base model's scores are beside it
        runtime = replace(runtime, out=folder.path.parent.parent)
    if chosen := run.config.get("checkpoint"):
        refuse_reported(
            chosen["prompts"], run.evaluation, f"'{folder.run_id}' was chosen on checkpoint.prompts, and this"
        )
    names = _reward_names(run, rewards)
    settings = replace(run.evaluation, rewards=tuple(names))
    device = pick_device(runtime.device)
    scorers = run.make_scorers(names, device, runtime.reward_timeout)
    base = base_folder(run.model, settings, runtime)
    try:
        check_writable(runtime.out, folder, base)
    except Unwritable as refused:
        return ev.recorded_table(folder, base, settings, scorers, refused), run.reward
    refuse_changed_plugins(folder, base, settings, scorers, trains=False, warn=_warn)
    policy = run.load_policy(device)
    set_threads(runtime.threads, device, policy)
    refuse_other_weights(policy, base)
    if warning := read_by(policy, judged(settings)).warning:
        _warn(warning)
    with suppress(SdpoBenchError):  # judging needs no prompts of training, and their file may be gone
        if warning := split_warning(str(run.config["sample"]["prompts"]), settings):
            _warn(warning)
    # The tuned and the base model have the same pictures to draw; nothing is trained.
    plan = RunPlan(run.config["method"]["name"], 0, 0, 0.0, tuned=1.0, base=1.0)
    with Live(folder.run_id, plan) as live:
        reference = run.record.get("reward_reference", {})
        calibrate(scorers, policy, runtime.out, reference, micro_batch=runtime.micro_batch, progress=live.evaluation)
        table = halving(
            lambda size: _judge(run, settings, policy, scorers, replace(runtime, micro_batch=size), live),
            runtime.micro_batch,
            lambda size, text: _warn(text),
        )
    return table, run.reward


def _reward_names(run: FinishedRun, rewards: str | None) -> list[str]:
    """What ``--rewards`` names; without it the trained reward and those of the run's evaluation."""
    if rewards is None:
        return [run.reward, *run.evaluation.rewards]
    names = [name.strip() for name in rewards.split(",") if name.strip()]
    if not names:
        raise UsageError(f"--rewards '{rewards}' names no reward. See: sdpo-bench list rewards")
    return names


def _judge(
    run: FinishedRun,
    settings: EvaluationSettings,
    policy: Policy,
    scorers: list[Scorer],
    runtime: Runtime,
    live: Live,
) -> list[dict[str, Any]]:
    """Complete the rows of the base model and of the run, and compare them."""
    folder, watcher = run.folder, Watcher(live.tick, live.evaluation)
    base_rows = evaluate_base(policy, run.model, settings, scorers, runtime, watcher, device=str(policy.device))
    load_adapter(policy, folder.lora)
    subject = ev.Subject(folder.run_id, run.config["method"]["name"], run.config["seed"])
    with folder.locked():
        record_prompt_digests(folder, settings)
        tuned_rows = ev.evaluate(
            policy,
            settings,
            scorers,
            folder,
            subject,
            micro_batch=runtime.micro_batch,
            progress=live.evaluation,
            search=run.search(scorers),
        )
        if exported(folder) and folder.state_or_unknown in ("failed", "unknown"):  # its judging had failed
            folder.set_status("done", warnings=len(collapse_guards.warnings(folder)))
    return step_table(base_rows, tuned_rows)


def _warn(text: str) -> None:
    click.echo(f"warning: {text}", err=True)
