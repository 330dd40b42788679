"""``sdpo_bench.run`` and what the ``run`` command shares with it: one run with progress and trackers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo_bench.config.resolve import Request, Resolved, resolve
from sdpo_bench.config.run_file import read_run_file
from sdpo_bench.estimates.progress_plan import progress_plan
from sdpo_bench.ledger import parse_budget
from sdpo_bench.plugins.conflicts import refuse_two_values
from sdpo_bench.prompts.prompt_sets import prompt_cache
from sdpo_bench.running.live import Live
from sdpo_bench.running.tracking import Tracking, split_settings, track_settings
from sdpo_bench.settings import Runtime, TrackSettings
from sdpo_bench.system.progress import Tick, Watcher

if TYPE_CHECKING:
    from sdpo_bench.library.results import Run
    from sdpo_bench.running.run_one import Outcome
    from sdpo_bench.system.distributed import Processes


def run(
    *,
    method: str | None = None,
    reward: str | None = None,
    model: str | None = None,
    preset: str | None = None,
    seed: int | None = None,
    budget: str | None = None,
    settings: Mapping[str, Any] | None = None,
    config: str | Path | None = None,
    track: Sequence[str] = (),
    results: str | Path = "results",
    device: str = "auto",
    threads: int = 0,
    micro_batch: int = 64,
    progress: bool = True,
) -> "Run":
    """Train one method with one reward and evaluate it, as ``sdpo-bench run``.

    A run that is done is returned as it is; an interrupted one goes on where it stopped.

    Args:
        method, reward, model, preset: names; None: chosen as on the command line.
        budget: where training stops, e.g. ``"images=3000"``.
        settings: any setting by ``section.key``, as ``--set``.
        config: a run file or a ``run.json``; everything else goes before it.
        track: trackers, e.g. ``["tensorboard"]``.
        results: results folder.
        threads: CPU threads of torch; 0: its default. micro_batch: most latents in one denoiser call.
        progress: show progress on standard error.

    Raises:
        UsageError: a wrong request. MissingError: weights, a package or a device that is not here.
        RunFailed: numbers that can no longer be trusted. KeyboardInterrupt: what was finished is kept.
    """
    tracked, overrides = split_settings(settings or {})
    file = read_run_file(Path(config)) if config else None
    if file:
        filed, others = split_settings(file.settings)
        file, tracked = replace(file, settings=others), filed | tracked
    trackers = track_settings(tracked, track)
    given: dict[str, tuple[str, Any]] = {
        "method.name": (f"method={method!r}", method),
        "reward.name": (f"reward={reward!r}", reward),
        "model.name": (f"model={model!r}", model),
        "seed": (f"seed={seed}", seed),
    }
    if budget:
        axis, amount = parse_budget(budget)
        said = f"budget={budget!r}"
        given |= {f"budget.{axis}": (said, amount), "budget.amount": (said, amount), "budget.axis": (said, axis)}
    refuse_two_values(overrides, given)
    if budget:
        overrides[f"budget.{axis}"] = amount
    resolved = resolve(Request(method, reward, model, preset, seed, overrides, file))
    runtime = Runtime(Path(results), device, micro_batch, threads=threads)
    with prompt_cache():
        outcome = run_with_progress(resolved, runtime, trackers, quiet=not progress)
    from sdpo_bench.library.results import open_run  # with tables, which a run itself does without

    return open_run(outcome.run.path)


def run_with_progress(
    resolved: Resolved,
    runtime: Runtime,
    trackers: TrackSettings,
    processes: "Processes | None" = None,
    *,
    quiet: bool = False,
) -> "Outcome":
    """Do one run, show its progress and tell the trackers.

    Args:
        processes: who does it together; None: this process alone. Only the main one shows and tracks anything.
    """
    from sdpo_bench.running.run_one import run_job
    from sdpo_bench.system.distributed import ALONE

    processes = processes or ALONE
    if not processes.is_main:
        quiet, trackers = True, replace(trackers, to=())
    label = f"{resolved.config.method.name} on {resolved.reward_name}"
    with (
        Live(label, progress_plan(resolved, runtime), quiet=quiet) as live,
        Tracking(trackers, resolved, runtime.out, live.warn) as tracking,
    ):

        def tick(one: Tick) -> None:
            live.tick(one)
            tracking.tick(one)

        outcome = run_job(resolved, runtime, Watcher(tick, live.evaluation, live.second_process), processes)
        tracking.finish(outcome.table)
        return outcome
