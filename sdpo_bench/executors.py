"""Where cells run: an executor starts jobs and says which have ended. This one uses processes on this machine.

Each cell has a process of its own, so that a crash, a leak or a full memory ends one cell and no other. On Linux they
are forked from a server that has imported the libraries already, which saves several seconds a cell.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from typing import Any, Protocol

from sdpo_bench.cell_process import STOPPED, Job, child

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Ended:
    """A job that is no longer running: exit code of ``cell_process``, and words if its process could not leave any."""

    job: Job
    code: int
    message: str = ""


class Executor(Protocol):
    """What a sweep needs of a place to run."""

    @property
    def slots(self) -> int:
        """Most jobs at a time."""

    def start(self, job: Job) -> None:
        """Begin a job; returns at once."""

    def wait(self, timeout: float) -> list[Ended]:
        """Jobs that have ended since the last call; returns as soon as there is one, or after ``timeout`` seconds."""

    def stop(self) -> None:
        """Ask all running jobs to save and end."""

    def kill(self) -> None:
        """End all running jobs at once."""

    def close(self) -> None:
        """Give back what the executor holds."""


def cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_share(jobs: int) -> int:
    """CPU threads of each of ``jobs`` processes: an equal share of the processors, which do not get in each
    other's way."""
    return max(1, cores() // jobs)


class LocalExecutor:
    """Processes on this machine.

    Args:
        jobs: most processes at a time.
        threads: CPU threads of each; 0: its share of the processors.
        devices: given to the jobs in turn, e.g. ``["cuda:0", "cuda:1"]``.
        start_method: of ``multiprocessing``; the best one for the platform if empty.
    """

    def __init__(self, jobs: int, *, threads: int = 0, devices: Sequence[str] = ("auto",), start_method: str = ""):
        self.jobs = jobs
        self.threads = threads or thread_share(jobs)
        self.devices = tuple(devices)
        self._context: Any = multiprocessing.get_context(start_method or _start_method())
        if self._context.get_start_method() == "forkserver":
            self._context.set_forkserver_preload(["sdpo_bench.warm"])
        self._running: dict[Any, tuple[Job, Any, int]] = {}
        self._stopping = False

    @property
    def slots(self) -> int:
        return self.jobs

    def start(self, job: Job) -> None:
        place = min(set(range(self.jobs)) - {place for _, _, place in self._running.values()})
        device = self.devices[place % len(self.devices)]
        job = replace(job, runtime=replace(job.runtime, threads=self.threads, device=device))
        process = self._context.Process(target=child, args=(job,), name=job.run_id, daemon=True)
        before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(self.threads)))
        try:
            process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        self._running[process.sentinel] = (job, process, place)

    def wait(self, timeout: float) -> list[Ended]:
        ended = []
        for sentinel in wait(list(self._running), timeout):
            job, process, _ = self._running.pop(sentinel)
            process.join()
            ended.append(self._ended(job, process.exitcode))
        return ended

    def _ended(self, job: Job, code: int) -> Ended:
        if code >= 0:
            return Ended(job, code)
        if self._stopping:
            return Ended(job, STOPPED)
        name = signal.Signals(-code).name
        hint = " The machine may have run out of memory: try fewer --jobs." if -code == signal.SIGKILL else ""
        return Ended(job, code, f"its process was ended by {name}.{hint}")

    def stop(self) -> None:
        self._stopping = True
        for _, process, _ in self._running.values():
            process.terminate()

    def kill(self) -> None:
        self._stopping = True
        for _, process, _ in self._running.values():
            process.kill()

    def close(self) -> None:
        self.kill()
        while self._running:
            self.wait(1.0)


def _start_method() -> str:
    available = multiprocessing.get_all_start_methods()
    return "forkserver" if sys.platform.startswith("linux") and "forkserver" in available else "spawn"
