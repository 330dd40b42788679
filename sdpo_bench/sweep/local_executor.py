"""Where jobs run: an executor starts jobs and says which have ended. This one uses processes on this machine.

Each task has a spawned process of its own, so that a crash, a leak or a full memory ends one task and no other.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from sdpo_bench.errors import MissingError
from sdpo_bench.sweep.worker import FAILED, STOPPED, Said, Task, child
from sdpo_bench.system.signals import shield_children

START_METHOD = "spawn"
"""Of ``multiprocessing``."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Ended:
    """A task that is no longer running, in the words of ``worker.Said``; ``message``: why it failed."""

    task: Task
    code: int
    message: str = ""
    note: str = ""


class NoProcess(MissingError):
    """The machine refuses another process; no job is to blame."""


class Executor(Protocol):
    """What a sweep needs of a place to run."""

    @property
    def slots(self) -> int:
        """Most jobs at a time."""

    @property
    def after_kill(self) -> str:
        """What is left of the jobs that :meth:`kill` ends, in words."""

    def start(self, task: Task) -> None:
        """Begin a task; returns at once.

        Raises:
            Busy: another process works on it. NoProcess: there is no room now. SdpoBenchError, OSError: its folder.
        """

    def wait(self, timeout: float) -> list[Ended]:
        """Tasks that have ended since the last call; returns as soon as there is one, or after ``timeout`` seconds."""

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
    """

    def __init__(self, jobs: int, *, threads: int = 0, devices: Sequence[str] = ("auto",)):
        self.jobs = jobs
        self.threads = threads or thread_share(jobs)
        self.devices = tuple(devices)
        self._context: Any = multiprocessing.get_context(START_METHOD)
        self._running: list[_Running] = []
        self._stopping = False

    @property
    def slots(self) -> int:
        return self.jobs

    @property
    def after_kill(self) -> str:
        return "what was saved before stays"

    def start(self, task: Task) -> None:
        """Raises NoProcess."""
        place = min(set(range(self.jobs)) - {job.place for job in self._running})
        device = self.devices[place % len(self.devices)]
        task = replace(task, runtime=replace(task.runtime, threads=self.threads, device=device))
        try:
            words, said = self._context.Pipe(duplex=False)
            # No daemon, which could start no processes, as rewards and loaders of data do. It ends with the sweep by
            # itself (``worker``).
            process = self._context.Process(target=child, args=(task, said), name=task.run_id, daemon=False)
            with said, _thread_variables(self.threads), shield_children():
                process.start()
        except OSError as error:
            raise NoProcess(
                f"no process can be started for a job: {error.strerror or error}. Allow more open files (ulimit -n) "
                "and processes (ulimit -u), or free some memory, and give the same command again; finished work stays."
            ) from error
        self._running.append(_Running(task, process, words, place))

    def wait(self, timeout: float) -> list[Ended]:
        ready = set(wait([end for job in self._running for end in job.ends], timeout))
        ended = []
        for job in [job for job in self._running if not ready.isdisjoint(job.ends)]:
            said = job.said() if job.words in ready else None
            job.process.join()
            self._running.remove(job)
            job.words.close()
            ended.append(Ended(job.task, *said) if said else self._without_words(job))
        return ended

    def _without_words(self, job: "_Running") -> Ended:
        code = job.process.exitcode
        if code >= 0:
            return Ended(job.task, FAILED, f"its process ended by exit code {code} before the run was done.")
        if self._stopping:
            return Ended(job.task, STOPPED)
        name = signal.Signals(-code).name
        hint = " The machine may have run out of memory: try fewer --jobs." if -code == signal.SIGKILL else ""
        return Ended(job.task, FAILED, f"its process was ended by {name}.{hint}")

    def stop(self) -> None:
        self._tell(signal.SIGTERM)

    def kill(self) -> None:
        self._tell(getattr(signal, "SIGKILL", signal.SIGTERM))

    def _tell(self, number: int) -> None:
        self._stopping = True
        for job in self._running:
            with suppress(ProcessLookupError):
                os.kill(job.process.pid, number)

    def close(self) -> None:
        self.kill()
        while self._running:
            self.wait(1.0)


class _Running:
    """A job at work.

    Args:
        words: through which its process says how it ended.
        place: number of its device.
    """

    def __init__(self, task: Task, process: Any, words: Connection, place: int):
        self.task, self.process, self.words, self.place = task, process, words, place
        self.ends = (words, process.sentinel)
        """What tells that it has ended: its exit report, or the end of its process."""

    def said(self) -> Said | None:
        """What it has said; None where it ended without a word."""
        with suppress(EOFError, OSError):
            said: Said = self.words.recv()
            return said
        return None


@contextmanager
def _thread_variables(threads: int) -> Iterator[None]:
    """The environment in which a process that starts has so many threads."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
