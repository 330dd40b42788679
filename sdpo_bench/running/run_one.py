"""One run from start to end: train, export the adapter, judge it beside the base model, draw the grid.

Every step looks at the run folder first, so calling this again does only what is still missing.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch

from sdpo_bench.api import Search
from sdpo_bench.config.resolve import Resolved, build_method
from sdpo_bench.errors import RunFailed, SdpoBenchError, Unwritable, UsageError
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.evaluation.base_scores import base_folder, evaluate_base
from sdpo_bench.evaluation.best_checkpoint import Validator, refuse_other_sampler
from sdpo_bench.evaluation.inference_search import Candidates, candidates_of
from sdpo_bench.evaluation.learning_curve import CurveRecorder
from sdpo_bench.evaluation.picture_grid import draw_grid, grid_prompts
from sdpo_bench.evaluation.reward_scale import apply, calibrate
from sdpo_bench.evaluation.score_rows import step_table
from sdpo_bench.hashing import canonical
from sdpo_bench.models.base_model import load_policy, pick_device
from sdpo_bench.models.hub import resolved_commit
from sdpo_bench.models.policy import Policy
from sdpo_bench.prompts.prompt_sets import digests_in_use, prompt_cache, prompt_commits
from sdpo_bench.running.evaluation_process import (
    Assignment,
    EvaluationProcess,
    evaluation_process,
    reward_sources,
    set_threads,
    use_second_process,
)
from sdpo_bench.running.run_warnings import warn_of_cut_prompts, warn_of_no_update, warn_of_splits
from sdpo_bench.running.source_check import refuse_changed_plugins, refuse_other_weights
from sdpo_bench.runs import provenance
from sdpo_bench.runs.adapter import LORA_FILE, exported, seal_log
from sdpo_bench.runs.input_digests import has_numbers, record_prompt_digests, recorded_prompt_digests
from sdpo_bench.runs.run_folder import RunFolder, check_writable
from sdpo_bench.runs.saved_adapter import load_adapter, save_adapter
from sdpo_bench.scoring.make_scorers import curve_scorers, evaluation_scorers
from sdpo_bench.scoring.scorer import Scorer, supervise
from sdpo_bench.seeds import seed_for
from sdpo_bench.settings import Runtime
from sdpo_bench.system.distributed import ALONE, Processes
from sdpo_bench.system.memory_retry import halving
from sdpo_bench.system.progress import Watcher
from sdpo_bench.training import collapse_guards
from sdpo_bench.training.loop import Trainer, run_context


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, the base against tuned table, and whether any training happened just now."""

    run: RunFolder
    table: list[dict[str, Any]]
    trained_now: bool


def run_job(
    resolved: Resolved, runtime: Runtime, watcher: Watcher | None = None, processes: Processes = ALONE
) -> Outcome:
    """Complete the missing steps of a run and return its table.

    Args:
        processes: who does it together, on a results folder that all of them see; the main one writes.

    Where the results folder cannot be written, a finished run is still shown. Prompt files are read once.

    Raises:
        UsageError: a prompt file that the run was judged on before was changed since, or its record was.
        Unwritable: anything is missing and cannot be written.
        RunFailed: recorded in the run's status, as any other error; the last good checkpoint stays.
        KeyboardInterrupt: likewise recorded; the same call later resumes.
    """
    _refuse_several_runs(processes, resolved.run_id)
    with prompt_cache():
        run = RunFolder(runtime.out / "runs" / resolved.run_id)
        _refuse_another_run(run)
        refuse_other_sampler(run, resolved.config)
        with prompt_cache(recorded_prompt_digests(run), run.run_id):
            job = _prepare(resolved, runtime, run, watcher or Watcher(), processes)
            if isinstance(job, Outcome):
                return job
            _load(job)
            references = _calibrate(job)
            if not processes.is_main:
                return _work(job)
            record = _record(job, references)
            run.create(record)
            with run.locked():
                _record_inputs(job, record)
                with _finish(job), evaluation_process(_assignment(job, references)) as helper:
                    if helper is not None:
                        job.watcher.second_process()
                    outcome = _work(job, helper)
            return outcome


@dataclass(frozen=True)
class _PreparedRun:
    """A run that is ready to be worked on; ``trains`` says whether it has no finished adapter yet."""

    resolved: Resolved
    trainer: Trainer
    scorers: list[Scorer]
    """Of the evaluation, the trained reward first."""
    curve_scorers: list[Scorer]
    """Of the learning curve; empty without one."""
    base: RunFolder
    watcher: Watcher
    device: str
    trains: bool

    @property
    def every_scorer(self) -> list[Scorer]:
        """Scorers of the evaluation, and those of the curve with rewards that the evaluation lacks."""
        known = [scorer.reward for scorer in self.scorers]
        return self.scorers + [scorer for scorer in self.curve_scorers if scorer.reward not in known]


def _prepare(
    resolved: Resolved, runtime: Runtime, run: RunFolder, watcher: Watcher, processes: Processes
) -> _PreparedRun | Outcome:
    """Refuse whatever can be refused before anything is written; the outcome where nothing can be written."""
    config = resolved.config
    device = pick_device(runtime.device)
    base = base_folder(config.model, config.eval, runtime)
    try:
        check_writable(runtime.out, run, base)
    except Unwritable as refused:
        scorers = evaluation_scorers(config, device, runtime.reward_timeout)
        return Outcome(run, ev.recorded_table(run, base, config.eval, scorers, refused), trained_now=False)
    ev.splits(config.eval)
    policy = load_policy(config.model, device=device, lora_seed=seed_for(config.seed, "lora"))
    set_threads(runtime.threads, device, policy)
    for steps in config.eval.steps:
        ev.evaluation_schedule(policy, config.eval, steps)
    scorers = evaluation_scorers(config, device, runtime.reward_timeout)
    trains = processes.share(lambda: not ((run.lora / LORA_FILE).exists() and exported(run)))
    points = curve_scorers(config, scorers, device, runtime.reward_timeout) if trains and config.eval.every else []
    trainer = _trainer(resolved, runtime, run, policy, scorers[0], points, watcher, processes)
    return _PreparedRun(resolved, trainer, scorers, points, base, watcher, device, trains)


def _load(job: _PreparedRun) -> None:
    """Load the rewards, after refusing plugins and weights that changed since the run began."""
    trainer, settings = job.trainer, job.trainer.config.eval
    refuse_changed_plugins(trainer.run, job.base, settings, job.scorers, trains=job.trains, warn=trainer.warn)
    folders = trainer.run, job.base
    if job.trains or any(ev.missing_scorers(folder, settings, job.scorers) for folder in folders):
        for folder in folders:
            refuse_other_weights(trainer.policy, folder)
    for scorer in job.every_scorer:
        scorer.load()


def _calibrate(job: _PreparedRun) -> dict[str, Any]:
    """Standardise the parts of weighted sums, equally on all processes; returns what with."""
    references = job.trainer.processes.share(lambda: _references(job.trainer, job.every_scorer, job.watcher))
    apply(job.every_scorer, references)
    return references


def _assignment(job: _PreparedRun, references: dict[str, Any]) -> Assignment | None:
    """What a second process is told; None where the run has none, or where there is too little to gain."""
    trainer, scorers = job.trainer, job.scorers
    config, runtime = trainer.config, trainer.runtime
    calls = sum(block.calls for block in ev.blocks_of(config.eval))
    wanted = use_second_process(runtime, job.device, trainer.processes, trainer.policy, scorers, calls)
    if not (wanted and (job.trains or ev.missing_scorers(job.base, config.eval, scorers))):
        return None
    return Assignment(config, runtime, references, digests_in_use(), reward_sources(scorers), torch.get_num_threads())


def _record_inputs(job: _PreparedRun, record: dict[str, Any]) -> None:
    """Record what the run reads, with its folder locked."""
    trainer, run = job.trainer, job.trainer.run
    if not has_numbers(run):  # a plugin may have been mended since an earlier start failed
        run.create(record, replace=True)
    record_prompt_digests(run, trainer.config.eval)
    warn_of_cut_prompts(trainer)
    warn_of_splits(trainer)


@contextmanager
def _finish(job: _PreparedRun) -> Iterator[None]:
    """Record how the work ends."""
    run = job.trainer.run
    # What fails in a finished run is one more look at it, not the run.
    finished = not job.trains and run.state_or_unknown == "done"
    try:
        yield
    except BaseException as error:
        _record_end(run, error, finished)
        if isinstance(error, SystemExit):
            raise RunFailed(f"{_why(error)}. Plugins raise errors; the last good checkpoint stays") from error
        raise
    run.set_status("done", warnings=len(collapse_guards.warnings(run)))


def _refuse_several_runs(processes: Processes, run_id: str) -> None:
    """Processes that see other files or other plugins, or a reward that names its own device, make another run each.

    Raises:
        UsageError: on all of them.
    """
    if len(found := sorted(set(processes.gather(run_id)))) > 1:
        raise UsageError(
            f"the processes would each do another run ({', '.join(found)}). They need the same settings, plugins and "
            "prompt files, and no full_version may depend on the device."
        )


def _refuse_another_run(run: RunFolder) -> None:
    """A folder that was copied or renamed to the name of this run, or whose record was changed.

    Raises:
        UsageError: with what to do about it.
    """
    if (run.path / "run.json").exists() and (found := run.record()["run"]) != run.run_id:
        raise UsageError(
            f"'{run.path}' holds run '{found}': the folder was renamed or copied to a name that is not its own. Give "
            "it another name, or delete it, and then the same command again."
        )


def _record_end(run: RunFolder, error: BaseException, finished: bool) -> None:
    """Or the run would read as running for ever."""
    with suppress(Unwritable, OSError):  # then not even the status fits
        if finished:
            run.set_status("done", warnings=len(collapse_guards.warnings(run)))
        elif isinstance(error, KeyboardInterrupt):
            run.set_status("interrupted", "stopped by Ctrl-C or a signal; the same command resumes it")
        else:
            run.set_status("failed", _why(error))


def _why(error: BaseException) -> str:
    if isinstance(error, SdpoBenchError):
        return str(error)
    if isinstance(error, SystemExit):  # of a plugin: exit code 0 would read as success
        return f"a plugin ended the program: sys.exit({error.code})"
    return f"{type(error).__name__}: {error}".removesuffix(": ")  # a defect, often of a plugin


def _work(job: _PreparedRun, helper: EvaluationProcess | None = None) -> Outcome:
    """What all processes of a run do: train a run that has no adapter, then judge it."""
    trainer, scorers, train = job.trainer, job.scorers, job.trains
    config, run, processes = trainer.config, trainer.run, trainer.processes
    if train:
        if processes.is_main:
            run.set_status("running", "training")
        trainer.train()
        warn_of_no_update(trainer)
        _export(trainer, run)
    search = candidates_of(trainer.method, scorers[0], config.seed)
    for attempt in trainer.attempts(trainer.record_out_of_memory):
        with attempt:
            table = _judge(trainer, scorers, job.watcher, job.device, search, helper)
    if helper is not None and helper.failure:
        trainer.warn(f"the second process has failed ({helper.failure}); this one has done its work")
    return Outcome(run, table, train)


def _references(trainer: Trainer, scorers: list[Scorer], watcher: Watcher) -> dict[str, Any]:
    """What the parts of weighted sums are standardised with."""
    run, out = trainer.run, trainer.runtime.out
    recorded = run.record().get("reward_reference", {}) if (run.path / "run.json").exists() else {}
    return halving(
        lambda size: calibrate(scorers, trainer.policy, out, recorded, micro_batch=size, progress=watcher.evaluation),
        trainer.context.micro_batch.size,
        lambda size, text: trainer.warn(text),
    )


def _export(trainer: Trainer, run: RunFolder) -> None:
    """The run's adapter: of the last epoch (or its moving average), or of the one chosen on validation prompts."""
    trainer.state.check_logs()
    trainer.updater.followers.deliver()
    if trainer.validator is not None:
        load_adapter(trainer.policy, trainer.validator.best_adapter())
    if trainer.processes.is_main:
        save_adapter(trainer.policy, run.lora)
        seal_log(run)
    trainer.processes.meet()
    if trainer.validator is not None:
        trainer.validator.clear()


def _record(job: _PreparedRun, references: dict[str, Any]) -> dict[str, Any]:
    """Content of ``run.json``."""
    resolved, trainer, scorers, device = job.resolved, job.trainer, job.scorers, job.device
    config, method = resolved.config, trainer.method
    count = trainer.processes.count
    optional: dict[str, Any] = {"processes": count} if count > 1 else {}
    optional |= {"search": {"samples_per_image": method.candidates}} if isinstance(method, Search) else {}
    names = [config.sample.prompts, config.eval.train, config.eval.validation, config.eval.unseen]
    commits = prompt_commits(name for name in names if name)
    optional |= {"prompt_commits": commits} if commits else {}
    return {
        **resolved.record,
        "sources": resolved.sources,
        "preset": resolved.preset,
        "reward_execution": {"name": config.reward.name, "settings": config.reward.settings},
        "reward_commits": {s.name: dict(s.reward.commits) for s in scorers if s.reward.commits},
        "model_commit": resolved_commit(trainer.policy.pipeline.name_or_path),
        "schedule": canonical(dict(trainer.schedule.resolved)),
        **provenance.record(config.method.name, config.reward.name, device),
        "reward_reference": references,
        **optional,
    }


def _trainer(
    resolved: Resolved,
    runtime: Runtime,
    run: RunFolder,
    policy: Policy,
    scorer: Scorer,
    points: list[Scorer],
    watcher: Watcher,
    processes: Processes,
) -> Trainer:
    """The run's trainer; making it checks prompts, schedule and budget and touches no file."""
    config = resolved.config
    method = build_method(config, resolved.method)
    chosen = config.checkpoint
    context = run_context(config, runtime, policy, method, processes)
    # Two scorers of the trained reward: validation and evaluation use one without a bill, training one with its bill.
    unbilled, reward = scorer, scorer.reward
    billed = supervise(config.reward.name, reward, context.ledger, timeout=runtime.reward_timeout)
    validator = None
    if chosen:
        validator = Validator(policy, chosen, config.eval, unbilled, run, context.micro_batch, watcher, processes)
    curve = None
    if points and method.signal != "none":
        curve = CurveRecorder(policy, config.eval, points, run, context.micro_batch, watcher, processes)
    return Trainer(context, config, run, billed, watcher.train, validator, curve)


def _judge(
    trainer: Trainer,
    scorers: list[Scorer],
    watcher: Watcher,
    device: str,
    search: Candidates | None,
    helper: EvaluationProcess | None,
) -> list[dict[str, Any]]:
    """Evaluation rows of the run and of its base model, the grid, and the table.

    The run comes first: a helper may still be at work on the base model, and holds its lock.
    """
    config, run = trainer.config, trainer.run
    runtime = replace(trainer.runtime, micro_batch=trainer.context.micro_batch.size)
    policy, processes, settings = trainer.policy, trainer.processes, trainer.config.eval
    folders = run, base_folder(config.model, settings, runtime)
    if processes.is_main and any(ev.missing_scorers(folder, settings, scorers) for folder in folders):
        run.set_status("running", "evaluating")
    load_adapter(policy, run.lora)
    subject = ev.Subject(run.run_id, config.method.name, config.seed)
    tuned_rows = ev.evaluate(
        policy,
        settings,
        scorers,
        run,
        subject,
        micro_batch=runtime.micro_batch,
        progress=watcher.evaluation,
        search=search,
        processes=processes,
        helper=helper,
    )
    base_rows = evaluate_base(
        policy, config.model, settings, scorers, runtime, watcher, device=device, processes=processes
    )
    if processes.is_main and not (run.path / "grid.png").exists():
        draw_grid(
            policy,
            settings,
            [(text, 0) for text in grid_prompts(settings)],
            settings.steps,
            run.path / "grid.png",
            caption="{prompt} ({model})",
            micro_batch=runtime.micro_batch,
            search=search,
        )
    return step_table(base_rows, tuned_rows)
