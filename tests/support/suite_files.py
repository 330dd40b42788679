"""Suite files for tests, and executors that only pretend."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sdpo_bench.config.resolve import resolve
from sdpo_bench.settings import Runtime
from sdpo_bench.sweep.asked_scores import asked_scores
from sdpo_bench.sweep.local_executor import TaskResult
from sdpo_bench.sweep.plan import Job
from sdpo_bench.sweep.worker import DONE, STOPPED, Task

SUITE = """
description = "for a test"
reproduces = "nothing"
departs = "everything"
[cells]
method = ["sdpo", "ddpo"]
reward = ["emoji-align"]
model = "emoji-turbo"
preset = "PLAIN"
seed = [0, 1]
[budget]
images = 128
"""

SEARCH = f"""{SUITE}
[search]
seed = 9
steps = [1, 4]
[search.budget]
images = 64
[search.grid.update]
lr = [1e-3, 2e-3]
[search.for.sdpo.method]
clip_range = [1e-4, 1e-3, 1e-2]
"""
"""The same with a search of its settings."""


PLAIN = """
[schedule]
steps = 10
[sample]
images_per_epoch = 64
[update]
minibatch = 32
accumulation = 1
lr = 4e-3
"""
"""A preset for tests, so that tuning the shipped ones changes no number here."""


def write_suite(folder: Path, text: str = SUITE, name: str = "mine", **changes: str) -> Path:
    """A suite file; ``changes`` replace lines by their key."""
    lines = []
    for line in text.splitlines():
        key = line.split(" = ")[0].strip()
        lines.append(f"{key} = {changes.pop(key)}" if key in changes else line)
    (folder / "plain.toml").write_text(PLAIN)
    lines = [line.replace('"PLAIN"', f'"{folder / "plain.toml"}"') for line in lines]
    path = folder / f"{name}.toml"
    path.write_text("\n".join([*lines, *(f"{key} = {value}" for key, value in changes.items())]) + "\n")
    return path


def tiny_suite(folder: Path, tiny_pipe: Path, more: str = "", **changes: str) -> Path:
    """A suite whose jobs train the tiny pipeline for about a second."""
    (folder / "two.txt").write_text("cat\ndog\n")
    text = f"""
[cells]
method = ["ddpo", "d3po"]
reward = "jpeg-incompressibility"
model = "{tiny_pipe}"
seed = [0]
[schedule]
steps = 2
[sample]
prompts = "{folder / "two.txt"}"
images_per_epoch = 4
[update]
minibatch = 2
accumulation = 1
lr = 1e-2
[budget]
images = 12
[eval]
train = "{folder / "two.txt"}"
steps = [1]
images_per_prompt = 1
"""
    return write_suite(folder, text + more, **changes)


def finish(task: Task, state: str = "done", message: str = "") -> None:
    """Leave what a job would leave, as far as a sweep looks at it."""
    task.folder.create(resolve(task.request).record)
    if state == "done" and not task.folder.evaluation.exists():
        leave_scores(task, 0.0)
    task.folder.set_status(state, message)


@dataclass
class FakeExecutor:
    """Jobs end when the test says so: ``behave`` maps a task to what becomes of it, or None while it runs on."""

    behave: Any
    slots: int = 1
    running: list[Task] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    stopped: int = 0
    killed: int = 0

    def start(self, task: Task) -> None:
        self.started.append(task.label)
        self.running.append(task)

    def wait(self, timeout: float) -> list[TaskResult]:
        ended = [found for task in list(self.running) if (found := self.behave(task)) is not None]
        self.running = [task for task in self.running if task.run_id not in {e.task.run_id for e in ended}]
        return ended

    def stop(self) -> None:
        self.stopped += 1

    def kill(self) -> None:
        self.killed += 1
        self.behave = lambda task: TaskResult(task, STOPPED)

    def close(self) -> None:
        pass


def succeed(task: Task) -> TaskResult:
    finish(task)
    return TaskResult(task, DONE)


def finish_job(out: Path, job: Job, state: str, message: str = "", *, rescored: bool = False) -> None:
    """:func:`finish` for a job of a plan; ``rescored``: with the scores that it asks for in place of those there."""
    task = Task(job.label, job.run_id, job.request, Runtime(out=out), "")
    if rescored:
        leave_scores(task, 0.0)
    finish(task, state, message)


def leave_scores(task: Task, score: float, *, add: bool = False, **changes: Any) -> None:
    """An evaluation file with the scores that a job asks for, all equal, and a bill.

    Args:
        add: keep the rows that are there, as an evaluation does.
        changes: fields of ``AskedScores``, for a run that was judged otherwise.
    """
    import numpy as np
    import pandas as pd
    from report_factory import frame

    asked = replace(asked_scores(resolve(task.request)), **changes)
    who = {"run": task.run_id, "method": "any", "seed": 0, "steps": asked.steps, "sampler": asked.sampler}
    frames = []
    for split, prompts in asked.prompts.items():
        scores = np.full((len(prompts), len(asked.steps), len(asked.images)), score)
        for reward in (asked.trained, *asked.held_out):
            version = asked.versions.get(reward, "1")
            frames.append(frame(scores, prompts=prompts, split=split, reward=reward, version=version, **who))
    task.folder.path.mkdir(parents=True, exist_ok=True)
    rows = pd.concat(frames)
    if add:
        keys = ["sampler", "split", "prompt", "image", "steps", "reward", "version"]
        rows = pd.concat([pd.read_parquet(task.folder.evaluation), rows]).drop_duplicates(keys)
    rows.to_parquet(task.folder.evaluation, index=False)
    bill = {"images": 64, "denoiser_calls": 100, "reward_calls": 64, "optimiser_steps": 5}
    (task.folder.path / "train.jsonl").write_text(json.dumps({"epoch": 1, "bill": bill}) + "\n")
