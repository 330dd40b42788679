"""Execute a plan: start missing jobs, continue after failures, never run a job twice, stop on a signal.

The results folder is the only memory. Another sweep may work on the same one: a locked job is tried again later, so
that it is taken over if its process dies.
"""

import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

from sdpo_bench.errors import Busy, Interrupted, SdpoBenchError, Unwritable
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.sweep.local_executor import Executor, TaskResult
from sdpo_bench.sweep.plan import Job, JobKey, Plan, job_state
from sdpo_bench.sweep.worker import BUSY, FAILED, STOPPED, Task
from sdpo_bench.system.signals import STOPS

Outcome = Literal["done", "elsewhere", "failed", "stopped"]
"""``elsewhere``: another sweep finished it meanwhile."""
POLL = 0.5  # seconds between looks at signals, clocks and locks


@dataclass
class Progress:
    """State of a sweep, as the views show it."""

    plan: Plan
    todo: list[JobKey]
    """Keys of the jobs of this sweep, in order."""
    running: dict[JobKey, float] = field(default_factory=dict)
    """Keys and start times."""
    outcomes: dict[JobKey, Outcome] = field(default_factory=dict)
    locked: set[JobKey] = field(default_factory=set)
    """Jobs that another process works on."""
    reasons: dict[JobKey, str] = field(default_factory=dict)
    """Why jobs failed, also where it could not be recorded."""
    ending: str = ""
    """Why running jobs save and end; empty before."""

    @property
    def jobs(self) -> dict[JobKey, Job]:
        return {job.key: job for job in self.plan.jobs}

    def count(self, outcome: str) -> int:
        return sum(result == outcome for result in self.outcomes.values())

    @property
    def left(self) -> int:
        """Jobs that have not ended."""
        return sum(self.outcomes.get(key) in (None, "stopped") for key in self.todo)

    def with_failures(self, plan: Plan) -> Plan:
        """A later plan with the failures of this sweep, those included that could not be recorded.

        A job whose folder says done is done, even if its process failed afterwards.
        """
        jobs = []
        for job in plan.jobs:
            if self.outcomes.get(job.key) == "failed" and job.state != "done":
                job = replace(job, state="failed", message=self.reasons[job.key])
            jobs.append(job)
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
        self.states = ("failed",) if only_failed else ("new", "unfinished", "failed", "waiting")
        self.progress = Progress(plan, [job.key for job in plan.jobs if job.state in self.states])
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
            for result in self.executor.wait(POLL):
                self._end(result)
        else:
            time.sleep(POLL)
        return True

    def _obey(self) -> None:
        """Signals and the clock."""
        p = self.progress
        late = self.deadline is not None and time.monotonic() >= self.deadline
        if (self._signals or late) and not self._stopping:
            self._stopping = True
            p.ending = "stopping" if self._signals else "time is up"
            self.tell(p, f"{p.ending}: {len(p.running)} running jobs save and end (Ctrl-C again kills them)")
            self.executor.stop()
        if len(self._signals) > 1 and not self._killed:
            self._killed = True
            self.tell(p, "killed; saved epochs stay")
            self.executor.kill()

    def _start_all(self) -> None:
        p = self.progress
        jobs = p.jobs
        p.locked = set()
        for key in p.todo:
            if len(p.running) >= self.executor.slots:
                return
            if key not in p.outcomes and key not in p.running:
                self._start(key, jobs[key])

    def _start(self, key: JobKey, job: Job) -> None:
        p = self.progress
        if job.role == "reported" and self._tuning_left(job):
            return
        if job.state == "waiting":
            self._replan()
            self._leave_undecided(key)
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
        except (SdpoBenchError, OSError) as error:  # the other jobs have their own folders
            self._fail(key, job, TaskResult(task, FAILED, str(error)))

    def _start_job(self, key: JobKey, job: Job, task: Task) -> None:
        p = self.progress
        if task.folder.is_locked:
            p.locked.add(key)
        elif job_state(task.folder, job.asked)[0] == "done":
            self._settle(key, "elsewhere", f"done by another sweep: {job.label}")
        else:
            self.executor.start(task)
            p.running[key] = time.monotonic()
            self.tell(p, f"started: {job.label} ({job.run_id})")

    def _tuning_left(self, job: Job) -> bool:
        jobs = self.progress.jobs
        return any(
            key not in self.progress.outcomes
            for key in self.progress.todo
            if key in jobs and jobs[key].role == "tuning" and jobs[key].search_group == job.search_group
        )

    def _leave_undecided(self, key: JobKey) -> None:
        """Leave a job to the next sweep whose search cannot end in this one: a tuning run was stopped from outside."""
        job = self.progress.jobs[key]
        if job.state == "waiting" and not self._tuning_left(job):
            self._settle(key, "stopped", f"left: {job.label}: a tuning run of its search was stopped")

    def _end(self, result: TaskResult) -> None:
        p = self.progress
        key = next(key for key in p.running if p.jobs[key].run_id == result.task.run_id)
        job, seconds = p.jobs[key], time.monotonic() - p.running.pop(key)
        if result.code == BUSY:
            return
        folder = result.task.folder
        if job_state(folder, job.asked)[0] == "done":  # even if its process failed afterwards
            failure = f" ({result.message})" if result.message else ""
            self._settle(key, "done", f"done: {job.label} in {seconds:.0f} s{failure}")
        elif result.code == STOPPED or (self._signals and folder.state_or_unknown == "interrupted"):
            # A scheduler's signal to the whole group can end a process after it has saved, before it has sent a report.
            self._settle(key, "stopped", f"stopped: {job.label}")
        else:
            self._fail(key, job, result)

    def _fail(self, key: JobKey, job: Job, result: TaskResult) -> None:
        folder = result.task.folder
        status = folder.status_or_unknown
        recorded = str(status["message"]) if status["state"] == "failed" else ""
        message = result.message or recorded or f"its process ended by exit code {result.code} before the run was done."
        if message != recorded:
            try:
                folder.record_failure(message)
            except Busy:
                return
            except (Unwritable, OSError) as error:
                self.tell(self.progress, f"the failure of {job.label} could not be recorded: {error}")
        self.progress.reasons[key] = message
        self._settle(key, "failed", f"failed: {job.label}: {message} (log: {result.task.log})")

    def _settle(self, key: JobKey, outcome: Outcome, line: str) -> None:
        self.progress.outcomes[key] = outcome
        self.tell(self.progress, line)
        job = self.progress.jobs[key]
        if job.role == "tuning" and not self._tuning_left(job):
            self._replan()

    def _replan(self) -> None:
        """Plan again; jobs that are new join the others, in the order of the plan.

        These are tuning runs of a search's next round, and reported jobs that were done with settings that a repeated
        tuning run has now beaten.
        """
        p = self.progress
        p.plan = self.replan()
        known = set(p.todo)
        searched = {job.search_group for job in p.plan.jobs if job.key in known and job.state == "waiting"}
        p.todo = [
            job.key
            for job in p.plan.jobs
            if job.key in known
            or job.state in self.states
            or (job.role == "tuning" and job.search_group in searched and job.state in ("new", "unfinished"))
        ]

    @contextmanager
    def _catching(self) -> Iterator[None]:
        """Collect stop signals, to be obeyed between two steps."""
        numbers = [number for number in STOPS if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, *numbers)}
        try:
            for number in before:
                signal.signal(number, lambda number, frame: self._signals.append(number))
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def move_to_replaced(plan: Plan, only_failed: bool) -> int:
    """For ``--force``: move the jobs' folders to ``<out>/replaced/``, so that they start again.

    Returns:
        The number of folders moved.

    Raises:
        Busy: one of them is being worked on.
        Unwritable: one cannot be moved.
    """
    folders = [RunFolder(plan.out / "runs" / job.run_id) for job in plan.jobs if job.run_id]
    existing = [f for f in folders if f.path.exists() and (not only_failed or f.state_or_unknown == "failed")]
    for folder in existing:
        if folder.is_locked:
            raise Busy(f"another process is working on run '{folder.run_id}'. Wait for it, or stop it first.")
    target = plan.out / "replaced" / time.strftime("%Y%m%dT%H%M%S")
    for folder in existing:
        try:
            target.mkdir(parents=True, exist_ok=True)
            shutil.move(folder.path, target / folder.run_id)  # copies where the target is another disk
        except OSError as error:
            raise Unwritable(
                f"'{folder.path}' cannot be moved to '{target}': {error.strerror or error}. Runs moved before "
                "are there. Give both folders free space and write access, and give the same command again.",
                error.strerror,
            ) from error
    return len(existing)
