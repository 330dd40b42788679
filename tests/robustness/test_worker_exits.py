"""How a sweep hears of the ends of its jobs: whatever becomes of a process or its log, the reason is told truly."""

import errno
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import preload  # noqa: F401  (forked processes then have it)
import pytest
from suite_files import FakeExecutor, finish, succeed, tiny_suite, write_suite

from sdpo_bench.cli.commands import study
from sdpo_bench.cli.commands import sweep as sweep_command
from sdpo_bench.cli.entry import main
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.sweep import local_executor
from sdpo_bench.sweep.local_executor import TaskResult
from sdpo_bench.sweep.plan import make_plan
from sdpo_bench.sweep.scheduler import Sweep
from sdpo_bench.sweep.suite import read_suite
from sdpo_bench.sweep.worker import DONE, FAILED
from sdpo_bench.training.loop import Trainer


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    monkeypatch.setattr(local_executor, "START_METHOD", "fork")
    monkeypatch.setattr("sdpo_bench.sweep.scheduler.POLL", 0.01)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def sweep(capfd):
    def call(path, out, *more):
        """Exit code, the jobs of ``--json`` by method, standard error."""
        with pytest.raises(SystemExit) as stop:
            main(["sweep", str(path), "--out", str(out), "--threads", "1", "--json", *more])
        said = capfd.readouterr()
        data = json.loads(said.out) if said.out else {"cells": []}
        return stop.value.code, {job["method"]: job for job in data["cells"]}, said.err

    return call


def run_of(path, out, method="ddpo"):
    (job,) = [job for job in make_plan(read_suite(path), out).jobs if job.method == method]
    return RunFolder(out / "runs" / job.run_id)


# -- logs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("obstacle", ["a folder in its place", "a file for the folder"])
def test_a_job_whose_log_cannot_be_written_does_without(tmp_path, tiny_pipe, sweep, obstacle):
    path, out = tiny_suite(tmp_path, tiny_pipe, method='["ddpo"]'), tmp_path / "out"
    if obstacle == "a folder in its place":
        (out / "logs" / f"{run_of(path, out).run_id}.log").mkdir(parents=True)
    else:
        out.mkdir()
        (out / "logs").write_text("")
    code, jobs, said = sweep(path, out)
    assert (code, jobs["ddpo"]["state"]) == (0, "done"), said


# -- processes -----------------------------------------------------------------------------------------------


def test_a_plugin_in_a_job_may_start_processes_which_end_with_it(tmp_path, tiny_pipe, sweep, monkeypatch):
    train, left = Trainer.train, tmp_path / "left"

    def train_with_help(self):
        pool = ProcessPoolExecutor(1, get_context("fork"))
        left.write_text(str(pool.submit(os.getpid).result()))
        self.pool = pool  # kept, and never shut down
        return train(self)

    monkeypatch.setattr(Trainer, "train", train_with_help)
    code, jobs, said = sweep(tiny_suite(tmp_path, tiny_pipe, method='["ddpo"]'), tmp_path / "out")
    assert (code, jobs["ddpo"]["state"]) == (0, "done"), said
    deadline = time.monotonic() + 60
    while Path(f"/proc/{left.read_text()}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{left.read_text()}").exists()


@pytest.mark.parametrize("code", [0, 1, 75, 130, 255])
def test_a_process_that_a_plugin_ends_is_a_failure_with_its_exit_code(tmp_path, tiny_pipe, sweep, monkeypatch, code):
    """Whatever the code means elsewhere: success, a lock that is held, an interruption."""
    train = Trainer.train
    leave = lambda self: os._exit(code) if self.run.run_id.startswith("ddpo") else train(self)  # noqa: E731
    path, out = tiny_suite(tmp_path, tiny_pipe, method='["ddpo"]' if code else '["ddpo", "d3po"]'), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train", leave)
        got, jobs, _ = sweep(path, out)
    assert (got, jobs["ddpo"]["state"], jobs["ddpo"]["outcome"]) == (1, "failed", "failed")
    assert jobs["ddpo"]["message"] == f"its process ended by exit code {code} before the run was done."
    if code == 0:
        assert jobs["d3po"]["state"] == "done"
        got, jobs, said = sweep(path, out, "--only-failed")
        assert (got, jobs["ddpo"]["outcome"], jobs["d3po"]["outcome"]) == (0, "done", "skipped"), said


def test_a_failure_that_cannot_be_recorded_still_has_its_reason(tmp_path, tiny_pipe, sweep):
    path, out = tiny_suite(tmp_path, tiny_pipe), tmp_path / "out"
    run = run_of(path, out)
    run.path.parent.mkdir(parents=True)
    run.path.write_text("no folder")
    code, jobs, said = sweep(path, out)
    assert (code, jobs["d3po"]["outcome"], jobs["ddpo"]["outcome"]) == (1, "done", "failed")
    assert f"{run.run_id}" in jobs["ddpo"]["message"] and "could not be recorded" in said


def test_a_study_knows_of_a_training_whose_failure_could_not_be_recorded(tmp_path, monkeypatch):
    suite = read_suite(write_suite(tmp_path, seed="[0]"))
    first, _ = make_plan(suite, tmp_path / "out").jobs
    run = RunFolder(tmp_path / "out" / "runs" / first.run_id)
    run.path.parent.mkdir(parents=True)
    run.path.write_text("no folder")
    behave = lambda task: TaskResult(task, FAILED, "why") if task.run_id == first.run_id else succeed(task)  # noqa: E731
    monkeypatch.setattr(study, "LocalExecutor", lambda *arguments, **options: FakeExecutor(behave))
    trainings = study._sweep("mine", [suite], Runtime(out=tmp_path / "out"), 1, ["cpu"])
    assert [trained.job.state for trained in trainings.runs] == ["failed", "done"]
    assert trainings.runs[0].why_not == "failed: why"


def test_what_goes_wrong_after_a_run_is_done_does_not_undo_it(tmp_path, tiny_pipe, sweep, monkeypatch):
    def broken(*arguments):
        raise OSError(errno.EIO, "the table cannot be printed")

    monkeypatch.setattr("sdpo_bench.running.live.print_step_table", broken)
    path = tiny_suite(tmp_path, tiny_pipe, method='["ddpo"]')
    code, jobs, said = sweep(path, tmp_path / "out")
    assert (code, jobs["ddpo"]["outcome"]) == (0, "done")
    assert "the table cannot be printed" in said


def test_an_end_that_says_done_is_none_where_the_run_is_not(tmp_path):
    suite = read_suite(write_suite(tmp_path, method='["ddpo"]', seed="[0]"))
    (job,) = make_plan(suite, tmp_path).jobs
    progress = Sweep(
        lambda: make_plan(suite, tmp_path), FakeExecutor(lambda task: TaskResult(task, DONE)), Runtime(out=tmp_path)
    ).run("again")
    assert progress.outcomes == {job.key: "failed"}
    assert "exit code 0 before the run was done" in RunFolder(tmp_path / "runs" / job.run_id).status["message"]


def test_a_job_that_cannot_begin_fails_alone(tmp_path):
    suite = read_suite(write_suite(tmp_path))
    first, *others = make_plan(suite, tmp_path).jobs

    class Careful(FakeExecutor):
        def start(self, task):
            if task.run_id == first.run_id:
                raise OSError(errno.EIO, "a broken disk")
            super().start(task)

    progress = Sweep(lambda: make_plan(suite, tmp_path), Careful(succeed), Runtime(out=tmp_path)).run("again")
    assert (progress.count("done"), progress.count("failed")) == (len(others), 1)
    assert "a broken disk" in RunFolder(tmp_path / "runs" / first.run_id).status["message"]


# -- counts -------------------------------------------------------------------------------------


def test_a_job_that_another_sweep_finished_after_it_failed_here_is_counted_once(tmp_path, monkeypatch, sweep):
    path, out = write_suite(tmp_path, seed="[0]"), tmp_path / "out"
    first, second = make_plan(read_suite(path), out).jobs
    failed = []

    def behave(task):
        if task.run_id == first.run_id:
            failed.append(task)
            return TaskResult(task, FAILED, "why")
        finish(failed[0])
        return succeed(task)

    monkeypatch.setattr(sweep_command, "_executor", lambda *arguments: FakeExecutor(behave))
    code, jobs, _ = sweep(path, out)
    assert code == 0
    assert [jobs[job.method]["outcome"] for job in (first, second)] == ["elsewhere", "done"]
