"""The process of one job of a sweep: its log, its signals, its exit report.

A job is a plain ``run_job``; all its results are in its run folder. The exit report says how it ended and why, so that
a failure has its reason even where nothing can be written. The process saves and ends at SIGTERM, and when the sweep
that started it is gone.
"""

import os
import signal
import sys
import threading
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing import active_children, parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NoReturn

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import Busy, SdpoBenchError, UsageError
from sdpo_bench.prompts.prompt_sets import prompt_cache
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.system.signals import STOPS, handle_stops
from sdpo_bench.system.streams import open_log

DONE, FAILED, BUSY, STOPPED = 0, 1, 75, 130


@dataclass(frozen=True)
class Task:
    """One job, ready to be sent to another process or machine."""

    label: str
    run_id: str
    request: Request
    runtime: Runtime
    command: str
    """The same job as a command, for the log."""

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.runtime.out / "runs" / self.run_id)

    @property
    def log(self) -> Path:
        return self.runtime.out / "logs" / f"{self.run_id}.log"


ExitReport = tuple[int, str]
""":data:`DONE`, :data:`FAILED`, :data:`BUSY` or :data:`STOPPED`, and why it failed."""


def child(task: Task, threads: int, reports: Connection) -> NoReturn:
    """Main function of a process on this machine, which sends its exit report through ``reports``.

    Args:
        threads: CPU threads of torch until the job sets its own.
    """
    # Ctrl-C reaches every process of the terminal; the sweep alone decides what it means and sends SIGTERM. A limit on
    # CPU time is this process's own.
    for number in (signal.SIGINT, *STOPS):
        signal.signal(number, signal.SIG_IGN)
    handle_stops(signal.SIGTERM, getattr(signal, "SIGXCPU", signal.SIGTERM))
    try:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        _set_threads(threads)
        report: ExitReport = logged_work(task, descriptors=(1, 2))
    except KeyboardInterrupt:
        report = STOPPED, ""
    except BaseException as error:
        report = FAILED, failure_text(error)
    for process in active_children():  # a plugin's pool would wait for more work for ever
        process.terminate()
    with suppress(OSError):  # the sweep is gone
        reports.send(report)
    os._exit(report[0])


def failure_text(error: BaseException) -> str:
    """The message of an error, with its type where it may be a defect."""
    text = str(error)
    return text if isinstance(error, SdpoBenchError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def logged_work(task: Task, *, descriptors: tuple[int, ...] = ()) -> ExitReport:
    """:func:`work` with its output in the job's log; a job whose log cannot be written does without.

    Args:
        descriptors: of the process's own output, for libraries that bypass Python; none where the process runs more
            than one job.
    """
    with open_log(task.log) as log, redirect_stdout(log), redirect_stderr(log):
        for descriptor in descriptors:
            os.dup2(log.fileno(), descriptor)
        log.write(f"\n== {time.strftime('%Y-%m-%dT%H:%M:%S')} {task.label}\n== {task.command}\n")
        return work(task)


def work(task: Task) -> ExitReport:
    """Run the job. The sweep records a failure in its status."""
    try:
        with prompt_cache():
            _run(task)
    except KeyboardInterrupt:
        print("stopped; the next sweep goes on from the last whole epoch", file=sys.stderr)
        return STOPPED, ""
    except Busy as error:
        print(error, file=sys.stderr)
        return BUSY, ""
    except SdpoBenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        return FAILED, str(error)
    except BaseException as error:  # exit code 0 of a plugin's sys.exit would read as done
        traceback.print_exc()
        return FAILED, failure_text(error)
    return DONE, ""


def _run(task: Task) -> None:
    from sdpo_bench.estimates.progress_plan import progress_plan
    from sdpo_bench.running.live import Live, print_step_table
    from sdpo_bench.running.run_one import run_job
    from sdpo_bench.system.progress import Watcher

    resolved = resolve(task.request)
    if resolved.run_id != task.run_id:
        raise UsageError(
            f"the job resolves to {resolved.run_id} here, but was planned as {task.run_id}: a preset, prompt "
            "file, pipeline folder or plugin differs. Plan again, with the same files and version everywhere."
        )
    with Live(task.label, progress_plan(resolved, task.runtime)) as live:
        outcome = run_job(resolved, task.runtime, Watcher(live.tick, live.evaluation, live.second_process))
    print_step_table(outcome.table, resolved.reward_name)
