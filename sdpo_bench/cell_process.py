"""What a process does that runs one cell of a sweep: its log, its signals, its last words.

A cell is a plain ``run_cell``; everything it leaves is in its run folder, so whoever started it only learns an exit
code. It saves and ends when it is told to (SIGTERM) and also when the sweep that started it is gone.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import IO, Any, NoReturn

from sdpo_bench.config import Request, resolve
from sdpo_bench.errors import Busy, SdpoBenchError, Unwritable, UsageError
from sdpo_bench.prompts import held_prompts
from sdpo_bench.regular import regular
from sdpo_bench.settings import Runtime
from sdpo_bench.store import RunFolder

DONE, FAILED, BUSY, STOPPED = 0, 1, 75, 130


@dataclass(frozen=True)
class Job:
    """One cell, ready to be sent to another process or machine."""

    label: str
    run_id: str
    request: Request
    runtime: Runtime
    command: str
    """The same cell as a command, for the log."""

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.runtime.out / "runs" / self.run_id)

    @property
    def log(self) -> Path:
        return self.runtime.out / "logs" / f"{self.run_id}.log"


def child(job: Job) -> NoReturn:
    """Main function of a process on this machine."""
    # Ctrl-C reaches every process of the terminal; the sweep alone decides what it means and says so by SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _log(job) as stream, redirect_stdout(stream), redirect_stderr(stream):
        for descriptor in (1, 2):  # of libraries that do not ask Python
            os.dup2(stream.fileno(), descriptor)
        code = work(job)
    os._exit(code)


def _stop(number: int, frame: Any) -> NoReturn:
    # Once: schedulers tell the whole process group, and so does the sweep; a second signal must not tear saving apart.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _log(job: Job) -> Iterator[IO[str]]:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a", encoding="utf-8", buffering=1, opener=regular) as stream:
        stream.write(f"\n== {time.strftime('%Y-%m-%dT%H:%M:%S')} {job.label}\n== {job.command}\n")
        yield stream


def logged_work(job: Job) -> int:
    """:func:`work` for a process that does more than one cell: Python's own output goes to the cell's log."""
    with _log(job) as stream, redirect_stdout(stream), redirect_stderr(stream):
        return work(job)


def work(job: Job) -> int:
    """Do the cell; :data:`DONE`, :data:`FAILED` (the reason is in its status), :data:`BUSY` or :data:`STOPPED`."""
    try:
        with held_prompts():
            _run(job)
    except KeyboardInterrupt:
        print("stopped; the next sweep goes on from the last whole epoch", file=sys.stderr)
        return STOPPED
    except Busy as error:
        print(error, file=sys.stderr)
        return BUSY
    except SdpoBenchError as error:
        print(f"Error: {error}", file=sys.stderr)
        return _failed(job, str(error))
    except (Exception, SystemExit) as error:  # exit code 0 of a plugin's sys.exit would read as done
        traceback.print_exc()
        return _failed(job, f"{type(error).__name__}: {error}")
    return DONE


def _run(job: Job) -> None:
    from sdpo_bench.progress import Watcher
    from sdpo_bench.runner import run_cell
    from sdpo_bench.terminal import Live, print_step_table

    resolved = resolve(job.request)
    if resolved.run_id != job.run_id:
        raise UsageError(
            f"the cell resolves to {resolved.run_id} here, but was planned as {job.run_id}: a preset, prompt "
            "file, pipeline folder or plugin differs. Plan again, with the same files and version everywhere."
        )
    with Live(job.label) as live:
        outcome = run_cell(resolved, job.runtime, Watcher(live.tick, live.evaluation))
    print_step_table(outcome.table, resolved.reward_name)


def _failed(job: Job, message: str) -> int:
    try:
        job.folder.record_failure(message)
    except Busy:
        return BUSY
    except (Unwritable, OSError) as error:
        print(f"the failure could not be recorded: {error}", file=sys.stderr)
    return FAILED
