"""Execute a plan: start missing jobs, continue after failures, never run a job twice, stop on a signal.

The results folder is the only memory. Another sweep may work on the same one: a job that is locked waits its turn,
and if its process dies the next one to come by takes it up.
"""

import errno
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sdpo_bench.errors import Busy, Interrupted, SdpoBenchError, Unwritable
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.sweep.local_executor import Ended, Executor, NoProcess
from sdpo_bench.sweep.plan import Job, Plan, job_state
from sdpo_bench.sweep.worker import BUSY, FAILED, STOPPED, Task
from sdpo_bench.system.signals import STOPS

Outcome = Literal["done", "elsewhere", "failed", "stopped"]
"""``elsewhere``: another sweep finished it meanwhile."""
POLL = 0.5  # seconds between looks at signals, clocks and locks


@dataclass
class Progress:
    """State of a sweep, as the views show it."""

    plan: Plan
    todo: list[tuple[str, ...]]
    """Keys of the jobs of this sweep, in order."""
    running: dict[tuple[str, ...], float] = field(default_factory=dict)
    """Keys and start times."""
    outcomes: dict[tuple[str, ...], Outcome] = field(default_factory=dict)
    locked: set[tuple[str, ...]] = field(default_factory=set)
    """Jobs that another process works on."""
    reasons: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Why jobs failed, also where it could not be recorded."""
    note: str = ""

    @property
    def jobs(self) -> dict[tuple[str, ...], Job]:
        return {job.key: job for job in self.plan.jobs}

    def count(self, outcome: str) -> int:
        return sum(result == outcome for result in self.outcomes.values())

    @property
    def left(self) -> int:
        """Jobs that have not ended."""
        return sum(self.outcomes.get(key) in (None, "stopped") for key in self.todo)

    def told(self, plan: Plan) -> Plan:
        """A plan made afterwards, where a failure is one also if it could not be recorded.

        What its folder calls done is done, whoever did it and whatever became of the process here.
        """
        failed = {key for key, outcome in self.outcomes.items() if outcome == "failed"}
        jobs = [
            replace(job, state="failed", message=self.reasons[job.key])
            if job.key in failed and job.state != "done"
            else job
            for job in plan.jobs
        ]
        return replace(plan, jobs=tuple(jobs))


class Sweep:
    """One sweep over a results folder.

    Args:
        replan: the plan as it is now; called at the start and after tuning runs.
        runtime: of every job; the executor sets device and threads.
        only_failed: leave out jobs that have not failed.
        deadline: ``time.monotonic()`` at which running jobs save and end.
        tell: called with the progress and, when something happened, with a line of text.
    """

    def __init__(
        self,
        replan: Callable[[], Plan],
        executor: Executor,
        runtime: Runtime,
        *,
        only_failed: bool = False,
        deadline: float | None = None,
        tell: Callable[[Progress, str], None] = lambda progress, line: None,
    ):
        self.replan, self.executor, self.runtime = replan, executor, runtime
        self.deadline, self.tell = deadline, tell
        plan = replan()
        states = ("failed",) if only_failed else ("new", "unfinished", "failed", "waiting")
        self.progress = Progress(plan, [job.key for job in plan.jobs if job.state in states])
        self._signals: list[int] = []
        self._stopping = self._killed = False

    def run(self, resume: str) -> Progress:
        """Until every job has ended.

        Args:
            resume: the command that goes on after an interruption.

        Raises:
            Interrupted: Ctrl-C, SIGTERM or its like, after jobs have saved (a second one does not wait for them).
        """
        try:
            with self._catching():
                while self._step():
                    pass
        finally:
            self.executor.close()
        if self._signals:
            raise Interrupted(resume, 128 + self._signals[0])
        return self.progress

    def _step(self) -> bool:
        """One turn; False when nothing runs and nothing is left to start."""
        p = self.progress
        self._obey()
        if not self._stopping:
            self._start_all()
        waiting = not self._stopping and any(key not in p.outcomes and key not in p.running for key in p.todo)
        if not p.running and not waiting:
            return False
        self.tell(p, "")
        if p.running:
            for ended in self.executor.wait(POLL):
                self._end(ended)
        else:
            time.sleep(POLL)
        return True

    def _obey(self) -> None:
        """Signals and the clock."""
        late = self.deadline is not None and time.monotonic() >= self.deadline
        if (self._signals or late) and not self._stopping:
            self._stopping = True
            self.progress.note = "time is up" if late and not self._signals else "stopping"
            jobs = len(self.progress.running)
            self.tell(
                self.progress, f"{self.progress.note}: {jobs} running jobs save and end (Ctrl-C again kills them)"
            )
            self.executor.stop()
        if len(self._signals) > 1 and not self._killed:
            self._killed = True
            self.tell(self.progress, f"killed; {self.executor.after_kill}")
            self.executor.kill()

    def _start_all(self) -> None:
        p = self.progress
        jobs = p.jobs
        p.locked = set()
        for key in p.todo:
            if len(p.running) >= self.executor.slots:
                return
            if key in p.outcomes or key in p.running:
                continue
            try:
                self._start(key, jobs[key])
            except NoProcess as error:
                if not p.running:
                    raise
                self._wait_for_room(str(error))
                return

    def _wait_for_room(self, why: str) -> None:
        """Until a running job gives back what it holds."""
        if self.progress.note != why:
            self.progress.note = why
            self.tell(self.progress, f"waiting for a running job to end: {why}")

    def _start(self, key: tuple[str, ...], job: Job) -> None:
        p = self.progress
        if job.role == "reported" and self._tuning_left(job):
            return
        if job.state == "waiting":
            self._replan()
            return
        if not job.run_id:
            p.reasons[key] = job.message
            self._settle(key, "failed", f"failed: {job.label}: {job.message}")
            return
        task = Task(job.label, job.run_id, job.request, self.runtime, "sdpo-bench " + shlex.join(job.command()))
        try:
            self._start_job(key, job, task)
        except Busy:
            p.locked.add(key)
        except NoProcess:
            raise
        except (SdpoBenchError, OSError) as error:  # of this job's folder: the others have their own
            self._fail(key, job, Ended(task, FAILED, str(error)))

    def _start_job(self, key: tuple[str, ...], job: Job, task: Task) -> None:
        p = self.progress
        if task.folder.is_locked:
            p.locked.add(key)
        elif job_state(task.folder)[0] == "done":
            self._settle(key, "elsewhere", f"done by another sweep: {job.label}")
        else:
            self.executor.start(task)
            p.running[key], p.note = time.monotonic(), ""
            self.tell(p, f"started: {job.label} ({job.run_id})")

    def _tuning_left(self, job: Job) -> bool:
        jobs = self.progress.jobs
        return any(
            key not in self.progress.outcomes
            for key in self.progress.todo
            if key in jobs and jobs[key].role == "tuning" and jobs[key].group == job.group
        )

    def _end(self, ended: Ended) -> None:
        p = self.progress
        key, job = next(
            (key, job) for key, job in p.jobs.items() if job.run_id == ended.task.run_id and key in p.running
        )
        seconds = time.monotonic() - p.running.pop(key)
        if ended.code == BUSY:
            return
        folder = ended.task.folder
        if job_state(folder)[0] == "done":  # whatever became of its process afterwards
            after = f" ({ended.message or ended.note})" if ended.message or ended.note else ""
            self._settle(key, "done", f"done: {job.label} in {seconds:.0f} s{after}")
        elif ended.code == STOPPED or (self._signals and folder.known_state == "interrupted"):
            # A scheduler's signal to the whole group can end a job after it has saved, before it has said so.
            self._settle(key, "stopped", f"stopped: {job.label}")
        else:
            self._fail(key, job, ended)

    def _fail(self, key: tuple[str, ...], job: Job, ended: Ended) -> None:
        status = ended.task.folder.known_status
        recorded = str(status["message"]) if status["state"] == "failed" else ""
        message = ended.message or recorded or f"its process ended by exit code {ended.code} before the run was done."
        if message != recorded:
            try:
                ended.task.folder.record_failure(message)
            except Busy:
                return
            except (Unwritable, OSError) as error:
                self.tell(self.progress, f"the failure of {job.label} could not be recorded: {error}")
        self.progress.reasons[key] = message
        log = ended.note or f"log: {ended.task.log}"
        self._settle(key, "failed", f"failed: {job.label}: {message} ({log})")

    def _settle(self, key: tuple[str, ...], outcome: Outcome, line: str) -> None:
        self.progress.outcomes[key] = outcome
        self.tell(self.progress, line)
        job = self.progress.jobs[key]
        if job.role == "tuning" and not self._tuning_left(job):
            self._replan()

    def _replan(self) -> None:
        self.progress.plan = self.replan()

    @contextmanager
    def _catching(self) -> Iterator[None]:
        """Note the signals that end us instead of being torn out of what is going on."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, *numbers)}
        try:
            for number in before:
                signal.signal(number, lambda number, frame: self._signals.append(number))
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def put_aside(plan: Plan, only_failed: bool) -> int:
    """For ``--force``: move the folders of the plan's jobs out of the way, so that they start from the beginning.

    Returns:
        How many were moved, to ``<out>/replaced/``.

    Raises:
        Busy: one of them is being worked on.
        Unwritable: one cannot be moved.
    """
    folders = [RunFolder(plan.out / "runs" / c.run_id) for c in plan.jobs if c.run_id]
    existing = [f for f in folders if f.path.exists() and (not only_failed or f.known_state == "failed")]
    for folder in existing:
        if folder.is_locked:
            raise Busy(f"another process is working on run '{folder.run_id}'. Wait for it, or stop it first.")
    target = plan.out / "replaced" / time.strftime("%Y%m%dT%H%M%S")
    for folder in existing:
        try:
            target.mkdir(parents=True, exist_ok=True)
            _move(folder.path, target / folder.run_id)
        except OSError as error:
            raise Unwritable(
                f"'{folder.path}' cannot be moved to '{target}': {error.strerror or error}. Runs moved before "
                "are there. Give both folders free space and write access, and give the same command again.",
                error.strerror,
            ) from error
    return len(existing)


def _move(source: Path, target: Path) -> None:
    """Rename a folder, or copy it where the target is another disk (``runs`` may be a link)."""
    try:
        source.rename(target)
    except FileNotFoundError:  # another sweep was quicker
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(source, target, symlinks=True)
        shutil.rmtree(source)
