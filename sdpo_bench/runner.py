"""One cell from start to end: train, export the adapter, judge it beside the base model, draw the grid.

Every step looks at the run folder first, so calling this again does only what is still missing.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from sdpo_bench import evaluate as ev
from sdpo_bench import pictures, provenance
from sdpo_bench.api import Reward
from sdpo_bench.config import Resolved, build_method, validate
from sdpo_bench.errors import SdpoBenchError
from sdpo_bench.hub import resolved_commit
from sdpo_bench.identity import canonical, digest
from sdpo_bench.models import load_policy, pick_device
from sdpo_bench.policy import LORA_FILE, Policy
from sdpo_bench.progress import Watcher
from sdpo_bench.registry import find
from sdpo_bench.scoring import Scorer
from sdpo_bench.seeds import seed_for
from sdpo_bench.settings import EvaluationSettings, ModelSettings, RunConfig, Runtime
from sdpo_bench.store import RunFolder, check_writable
from sdpo_bench.train import Trainer

GRID_PROMPTS = 5


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, the base against tuned table, and whether any training happened just now."""

    run: RunFolder
    table: list[dict[str, Any]]
    trained_now: bool


def make_scorer(name: str, settings: dict[str, Any], device: str) -> Scorer:
    """A reward by name, ready to score; settings are checked against its own class."""
    plugin = find("rewards", name)
    reward_class = plugin.load()
    return Scorer(plugin.name, reward_class(validate(reward_class.Settings, settings, "reward"), device))


def evaluation_scorers(config: RunConfig, device: str) -> list[Scorer]:
    """The trained reward, then the held-out ones."""
    scorers = [make_scorer(config.reward.name, config.reward.settings, device)]
    others = [name for name in config.eval.rewards if find("rewards", name).name != config.reward.name]
    return scorers + [make_scorer(name, {}, device) for name in others]


def run_cell(resolved: Resolved, runtime: Runtime, watcher: Watcher | None = None) -> Outcome:
    """Do whatever is missing of a run and return its table.

    Raises:
        RunFailed: recorded in the run's status; the last good checkpoint stays.
        KeyboardInterrupt: likewise recorded; the same call later resumes.
    """
    watcher = watcher or Watcher()
    config = resolved.config
    device = pick_device(runtime.device)
    _set_threads(runtime.threads)
    check_writable(runtime.out)
    run = RunFolder(runtime.out / "runs" / resolved.run_id)
    # Whatever can be refused is refused before anything is written.
    ev.splits(config.eval)
    policy = load_policy(config.model, device=device, lora_seed=seed_for(config.seed, "lora"))
    scorers = evaluation_scorers(config, device)
    trained_now = not (run.lora / LORA_FILE).exists()
    trainer = _trainer(resolved, runtime, run, policy, scorers[0].reward, watcher)
    for scorer in scorers:
        scorer.reward.load()
    run.create(_record(resolved, trainer, scorers, device))
    with run.locked():
        try:
            if trained_now:
                run.set_status("running", "training")
                trainer.train()
                policy.save(run.lora)
            table = _judge(config, runtime, run, policy, scorers, watcher, device)
        except KeyboardInterrupt:
            run.set_status("interrupted", "stopped by the user; the same command resumes it")
            raise
        except SdpoBenchError as error:
            run.set_status("failed", str(error))
            raise
        run.set_status("done")
    return Outcome(run, table, trained_now)


def _set_threads(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)


def _record(resolved: Resolved, trainer: Trainer, scorers: list[Scorer], device: str) -> dict[str, Any]:
    config = resolved.config
    return {
        "kind": "run",
        "run": resolved.run_id,
        "config": resolved.data,
        "sources": resolved.sources,
        "preset": resolved.preset,
        "reward_version": resolved.versions["reward"],
        "reward_commits": {s.name: dict(s.reward.commits) for s in scorers if s.reward.commits},
        "model_commit": resolved_commit(trainer.policy.pipeline.name_or_path),
        "schedule": canonical(dict(trainer.schedule.resolved)),
        **provenance.record(config.method.name, config.reward.name, device),
    }


def _trainer(
    resolved: Resolved, runtime: Runtime, run: RunFolder, policy: Policy, reward: Reward, watcher: Watcher
) -> Trainer:
    """The run's trainer; making it checks prompts, schedule and budget and touches no file."""
    config = resolved.config
    method = build_method(config, resolved.method)
    return Trainer(config, runtime, run, policy, method, reward, watcher.train)


def _judge(
    config: RunConfig,
    runtime: Runtime,
    run: RunFolder,
    policy: Policy,
    scorers: list[Scorer],
    watcher: Watcher,
    device: str,
) -> list[dict[str, Any]]:
    """Evaluation rows of the run and of its base model, the grid, and the table."""
    settings = config.eval
    run.set_status("running", "evaluating")
    base_rows = evaluate_base(policy, config.model, settings, scorers, runtime, watcher, device=device)
    policy.load(run.lora)
    subject = ev.Subject(run.run_id, config.method.name, config.seed)
    tuned_rows = ev.evaluate(
        policy, settings, scorers, run, subject,
        micro_batch=runtime.micro_batch, progress=watcher.evaluation,
    )  # fmt: skip
    if not (run.path / "grid.png").exists():
        draw_grid(policy, settings, run, runtime.micro_batch)
    return ev.step_table(base_rows, tuned_rows)


def base_folder(model: ModelSettings, settings: EvaluationSettings, runtime: Runtime) -> RunFolder:
    """Where the base model's scores live; shared by all runs with the same model and evaluation sampler."""
    identity = {"model": model.name, "sampler": ev.sampler_id(settings), **_base_facts(model)}
    slug = "".join(c if c.isalnum() else "_" for c in model.name)[-40:]
    return RunFolder(runtime.out / "runs" / f"base-{slug}-{digest(identity)}")


def _base_facts(model: ModelSettings) -> dict[str, Any]:
    """What changes the base model's pictures besides its name and the sampler."""
    facts = {"revision": model.revision, "precision": model.precision}
    return facts | ({"resolution": model.resolution} if model.resolution else {})


def evaluate_base(
    policy: Policy,
    model: ModelSettings,
    settings: EvaluationSettings,
    scorers: list[Scorer],
    runtime: Runtime,
    watcher: Watcher,
    *,
    device: str,
) -> pd.DataFrame:
    """Rows of the base model (adapter off), computed once for each model and sampler."""
    run = base_folder(model, settings, runtime)
    record = {
        "kind": "base",
        "run": run.run_id,
        "config": canonical({"model": {"name": model.name, **_base_facts(model)}}),
        "sampler": ev.sampler_id(settings),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(device),
    }
    run.create(record)
    adapter = policy.reference() if policy.lora_parameters() else nullcontext()
    with run.locked(wait=True), adapter:
        rows = ev.evaluate(
            policy, settings, scorers, run, ev.Subject(run.run_id, "base", 0),
            micro_batch=runtime.micro_batch, progress=watcher.evaluation,
        )  # fmt: skip
        run.set_status("done")
    return rows


def draw_grid(policy: Policy, settings: EvaluationSettings, run: RunFolder, micro_batch: int) -> None:
    """``grid.png``: a few prompts, the same noise, base beside tuned, one column a step count."""
    texts = next(iter(ev.splits(settings).values()))
    chosen = texts[:: max(1, len(texts) // GRID_PROMPTS)][:GRID_PROMPTS]
    by_model = {}
    for name, context in (("base", policy.reference()), ("tuned", nullcontext())):
        with context:
            columns = [
                ev.sample_images(
                    policy, ev.evaluation_schedule(policy, settings, k), settings, [(t, 0) for t in chosen], micro_batch
                )
                for k in settings.steps
            ]
        by_model[name] = columns
    rows = []
    for r, text in enumerate(chosen):
        for name, columns in by_model.items():
            rows.append((f"{text} ({name})", torch.stack([column[r].cpu() for column in columns])))
    pictures.grid(rows, [f"{k} steps" for k in settings.steps], run.path / "grid.png")
