"""Where jobs run: an executor starts tasks and reports which have ended. This one uses processes on this machine.

Each task has a process of its own, so that a crash, a leak or a full memory ends one job and no other. Where the system
can fork, it is forked from one process that has the libraries loaded (``preload``): importing them takes longer than
many a small job.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from sdpo_bench.sweep.worker import FAILED, STOPPED, Task, child
from sdpo_bench.system.distributed import usable_cores
from sdpo_bench.system.signals import shield_children

START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""Of ``multiprocessing``."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class TaskResult:
    """How a task ended: one of the codes of ``worker``, or the negative number of a signal; and why it failed."""

    task: Task
    code: int
    message: str = ""


class Executor(Protocol):
    """A place to run tasks."""

    @property
    def slots(self) -> int:
        """Most tasks at a time."""

    def start(self, task: Task) -> None:
        """Begin a task; returns at once.

        Raises:
            Busy: another process works on it. SdpoBenchError, OSError: it cannot be started.
        """

    def wait(self, timeout: float) -> list[TaskResult]:
        """Tasks that have ended since the last call; returns as soon as there is one, or after ``timeout`` seconds."""

    def stop(self) -> None:
        """Ask all running tasks to save and end."""

    def kill(self) -> None:
        """End all running tasks at once; their saved epochs stay."""

    def close(self) -> None:
        """End all running tasks and release the executor's processes."""


def thread_share(jobs: int) -> int:
    """CPU threads of each of ``jobs`` processes: an equal share of the processors."""
    return max(1, usable_cores() // jobs)


class LocalExecutor:
    """Processes on this machine.

    Args:
        jobs: most processes at a time.
        threads: CPU threads of each; 0: as a run alone, one for a small denoiser, and for a larger one a share of the
            processors.
        devices: given to the tasks in turn, e.g. ``["cuda:0", "cuda:1"]``.
    """

    def __init__(self, jobs: int, *, threads: int = 0, devices: Sequence[str] = ("auto",)):
        self.slots = jobs
        self.threads = threads
        self.share = threads or thread_share(jobs)
        self.devices = tuple(devices)
        self._context: Any = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            self._context.set_forkserver_preload(["sdpo_bench.sweep.preload"])
        self._running: list[_Running] = []
        self._stopping = False

    def start(self, task: Task) -> None:
        place = min(set(range(self.slots)) - {running.place for running in self._running})
        device = self.devices[place % len(self.devices)]
        task = replace(task, runtime=replace(task.runtime, threads=self.threads, device=device))
        reports, report = self._context.Pipe(duplex=False)
        # A daemon could start no processes, as rewards and data loaders do. The process watches its parent instead.
        process = self._context.Process(target=child, args=(task, self.share, report), name=task.run_id, daemon=False)
        with report, _thread_variables(self.share), shield_children():
            process.start()
        self._running.append(_Running(task, process, reports, place))

    def wait(self, timeout: float) -> list[TaskResult]:
        ready = set(wait([end for running in self._running for end in running.ends], timeout))
        ended = [running for running in self._running if not ready.isdisjoint(running.ends)]
        return [self._finish(running) for running in ended]

    def _finish(self, running: "_Running") -> TaskResult:
        report = None
        with suppress(EOFError):
            report = running.reports.recv() if running.reports.poll() else None
        running.process.join()
        running.reports.close()
        self._running.remove(running)
        return TaskResult(running.task, *report) if report else self._result_of_death(running)

    def _result_of_death(self, running: "_Running") -> TaskResult:
        """The result of a process that has sent no report."""
        code = running.process.exitcode
        if code >= 0:
            return TaskResult(running.task, FAILED, f"its process ended by exit code {code} before the run was done.")
        if self._stopping:
            return TaskResult(running.task, STOPPED)
        hint = " The machine may have run out of memory: try fewer --jobs." if -code == signal.SIGKILL else ""
        return TaskResult(running.task, FAILED, f"its process was ended by {signal.Signals(-code).name}.{hint}")

    def stop(self) -> None:
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        self._stopping = True
        for running in self._running:
            with suppress(ProcessLookupError):
                os.kill(running.process.pid, number)

    def close(self) -> None:
        self.kill()
        while self._running:
            self.wait(1.0)


@dataclass(frozen=True, eq=False)
class _Running:
    """A task with its process."""

    task: Task
    process: Any
    reports: Connection
    """Receives the exit report."""
    place: int
    """Number of its device."""

    @property
    def ends(self) -> tuple[Connection, int]:
        """Ready when the task has ended: its exit report, or the end of its process."""
        return (self.reports, self.process.sentinel)


@contextmanager
def _thread_variables(threads: int) -> Iterator[None]:
    """The environment in which a new process has so many threads."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
