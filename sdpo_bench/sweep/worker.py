"""What a process does that runs one job of a sweep: its log, its signals, its last words.

A job is a plain ``run_job``; everything it leaves is in its run folder. Whoever started it hears how it ended and
why, so that a failure has its reason even where nothing can be written. It saves and ends when it is told to (SIGTERM)
and also when the sweep that started it is gone.
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
from typing import NamedTuple, NoReturn

from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import Busy, SdpoBenchError, Unwritable, UsageError, error_text
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


class Said(NamedTuple):
    """The last words of a process: how its job ended, why it failed, and what is missing from its log."""

    code: int
    """:data:`DONE`, :data:`FAILED`, :data:`BUSY` or :data:`STOPPED`."""
    message: str = ""
    note: str = ""


def child(task: Task, words: Connection) -> NoReturn:
    """Main function of a process on this machine; what it has :class:`Said` goes through ``words``."""
    # Ctrl-C reaches every process of the terminal, and others like it those of a task; the sweep alone decides what it
    # means and says so by SIGTERM. A limit on CPU time is this process's own.
    for number in (signal.SIGINT, *STOPS):
        signal.signal(number, signal.SIG_IGN)
    handle_stops(signal.SIGTERM, getattr(signal, "SIGXCPU", signal.SIGTERM))
    try:
        threading.Thread(target=_end_with_parent, daemon=True).start()
        last = logged_work(task, descriptors=(1, 2))
    except KeyboardInterrupt:
        last = Said(STOPPED)
    except BaseException as error:  # a machine without room for a thread, a file or a module
        last = Said(FAILED, in_words(error))
    for left in active_children():  # of a plugin, whose pool would wait for more work for ever
        left.terminate()
    with suppress(OSError):  # nobody listens any more
        words.send(last)
    os._exit(last.code)


def in_words(error: BaseException) -> str:
    """What to say of an error that may be a defect, often of a plugin."""
    text = error_text(error)
    return text if isinstance(error, SdpoBenchError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def logged_work(task: Task, *, descriptors: tuple[int, ...] = ()) -> Said:
    """:func:`work` with its output in the job's log; a job whose log cannot be written does without.

    Args:
        descriptors: those of the process's own output, for libraries that do not ask Python; none where the process
            does more than one job.
    """
    with open_log(task.log) as log, redirect_stdout(log), redirect_stderr(log):
        for descriptor in descriptors:
            os.dup2(log.fileno(), descriptor)
        log.write(f"\n== {time.strftime('%Y-%m-%dT%H:%M:%S')} {task.label}\n== {task.command}\n")
        code, message = work(task)
    return Said(code, message, log.lost and no_log(task, log.lost))


def no_log(task: Task, why: str) -> str:
    """The note of a job without a log, or without the whole of it."""
    return f"its log '{task.log}' cannot be written: {why}"


def work(task: Task) -> tuple[int, str]:
    """Do the job; how it ended, and why it failed, which its status says too where that can be written."""
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
        return _failed(task, str(error))
    except BaseException as error:  # exit code 0 of a plugin's sys.exit would read as done
        traceback.print_exc()
        return _failed(task, in_words(error))
    return DONE, ""


def _run(task: Task) -> None:
    from sdpo_bench.running.live import Live, print_step_table
    from sdpo_bench.running.run_one import run_job
    from sdpo_bench.system.progress import Watcher

    resolved = resolve(task.request)
    if resolved.run_id != task.run_id:
        raise UsageError(
            f"the job resolves to {resolved.run_id} here, but was planned as {task.run_id}: a preset, prompt "
            "file, pipeline folder or plugin differs. Plan again, with the same files and version everywhere."
        )
    with Live(task.label) as live:
        outcome = run_job(resolved, task.runtime, Watcher(live.tick, live.evaluation))
    print_step_table(outcome.table, resolved.reward_name)


def _failed(task: Task, message: str) -> tuple[int, str]:
    try:
        task.folder.record_failure(message)
    except Busy:
        return BUSY, ""
    except (Unwritable, OSError) as error:
        print(f"the failure could not be recorded: {error}", file=sys.stderr)
    return FAILED, message
