"""The rules of a sweep, with jobs that only pretend: what is started, when, and what a signal does."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from suite_files import SEARCH, FakeExecutor, finish, finish_job, leave_scores, succeed, write_suite

from sdpo_bench.cli.commands import sweep as sweep_command
from sdpo_bench.cli.entry import main
from sdpo_bench.errors import Busy, Interrupted
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.sweep.local_executor import TaskResult
from sdpo_bench.sweep.plan import make_plan
from sdpo_bench.sweep.scheduler import Sweep, move_to_replaced
from sdpo_bench.sweep.suite import read_suite
from sdpo_bench.sweep.worker import BUSY, FAILED, STOPPED
from sdpo_bench.system.signals import STOPS


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("sdpo_bench.sweep.scheduler.POLL", 0.01)


@pytest.fixture
def suite(tmp_path):
    return read_suite(write_suite(tmp_path))


def sweep(suite, out, behave, **options):
    executor = FakeExecutor(behave, slots=options.pop("slots", 1))
    made = Sweep(lambda: make_plan(suite, out), executor, Runtime(out=out), **options)
    return made, executor


def folder(out, job):
    return RunFolder(out / "runs" / job.run_id)


def test_what_is_done_is_skipped_and_the_rest_runs_in_order(suite, tmp_path):
    jobs = make_plan(suite, tmp_path).jobs
    finish_job(tmp_path, jobs[1], "done")
    finish_job(tmp_path, jobs[2], "interrupted")
    made, executor = sweep(suite, tmp_path, succeed)
    progress = made.run("again")
    assert executor.started == [jobs[0].label, jobs[2].label, jobs[3].label]
    assert (progress.count("done"), progress.left) == (3, 0)


def test_a_failure_stops_nothing_else_and_keeps_its_reason(suite, tmp_path):
    jobs = make_plan(suite, tmp_path).jobs
    told = []

    def behave(task):
        if task.run_id == jobs[0].run_id:
            finish(task, "failed", "the loss is NaN")
            return TaskResult(task, FAILED)
        if task.run_id == jobs[1].run_id:
            return TaskResult(task, -9, "its process was ended by SIGKILL.")
        return succeed(task)

    made, _ = sweep(suite, tmp_path, behave, tell=lambda progress, line: told.append(line))
    progress = made.run("again")
    assert (progress.count("done"), progress.count("failed")) == (2, 2)
    assert any("the loss is NaN" in line and "log:" in line for line in told)
    assert folder(tmp_path, jobs[1]).status == {"state": "failed", "message": "its process was ended by SIGKILL."}


def test_a_damaged_status_costs_its_own_job_at_most(suite, tmp_path):
    """A status that a crash left empty is written anew by the failure of its job; the others go on."""
    jobs = make_plan(suite, tmp_path).jobs
    finish_job(tmp_path, jobs[0], "interrupted")

    def behave(task):
        if task.run_id == jobs[0].run_id:
            (task.folder.path / "status").write_text("")
            return TaskResult(task, -9, "its process was ended by SIGKILL.")
        return succeed(task)

    made, _ = sweep(suite, tmp_path, behave)
    progress = made.run("again")
    assert (progress.count("done"), progress.count("failed")) == (len(jobs) - 1, 1)
    assert folder(tmp_path, jobs[0]).status["message"] == "its process was ended by SIGKILL."


def test_only_failed_takes_those_alone(suite, tmp_path):
    jobs = make_plan(suite, tmp_path).jobs
    finish_job(tmp_path, jobs[2], "failed", "why")
    made, executor = sweep(suite, tmp_path, succeed, only_failed=True)
    made.run("again")
    assert executor.started == [jobs[2].label]


def test_as_many_at_a_time_as_there_are_slots(suite, tmp_path):
    most = []

    def behave(task):
        most.append(len(executor.running))
        return succeed(task)

    made, executor = sweep(suite, tmp_path, behave, slots=2)
    made.run("again")
    assert max(most) == 2


def test_a_job_that_another_sweep_works_on_is_not_started_and_taken_up_when_it_dies(suite, tmp_path):
    jobs = make_plan(suite, tmp_path).jobs
    finish_job(tmp_path, jobs[0], "running")
    lock = folder(tmp_path, jobs[0]).locked()
    lock.__enter__()

    def behave(task):
        if len(executor.started) == 3:  # all others have begun: now the other sweep dies
            lock.__exit__(None, None, None)
        return succeed(task)

    made, executor = sweep(suite, tmp_path, behave)
    made.run("again")
    assert executor.started == [c.label for c in (*jobs[1:], jobs[0])]


def test_a_job_that_another_sweep_finishes_is_not_done_again(suite, tmp_path):
    jobs = make_plan(suite, tmp_path).jobs

    def behave(task):
        if task.run_id == jobs[0].run_id:
            finish_job(tmp_path, jobs[1], "done")
        return succeed(task)

    made, executor = sweep(suite, tmp_path, behave)
    progress = made.run("again")
    assert jobs[1].label not in executor.started
    assert progress.count("elsewhere") == 1


def test_losing_the_race_for_a_lock_is_no_failure(suite, tmp_path):
    attempts = []

    def behave(task):
        attempts.append(task.run_id)
        return TaskResult(task, BUSY) if len(attempts) == 1 else succeed(task)

    made, _ = sweep(suite, tmp_path, behave)
    progress = made.run("again")
    assert (progress.count("done"), progress.count("failed")) == (4, 0)
    assert attempts[0] == attempts[1]


def test_one_signal_lets_jobs_save_and_says_how_to_go_on(suite, tmp_path):
    def behave(task):
        if executor.stopped:
            finish(task, "interrupted")
            return TaskResult(task, STOPPED)
        os.kill(os.getpid(), signal.SIGINT)
        return None

    made, executor = sweep(suite, tmp_path, behave)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stop:
        made.run("sdpo-bench sweep mine")
    assert (stop.value.command, stop.value.exit_code) == ("sdpo-bench sweep mine", 130)
    assert (executor.stopped, executor.killed, len(executor.started)) == (1, 0, 1)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", STOPS)
def test_a_second_signal_does_not_wait(suite, tmp_path, number):
    """The task never ends by itself."""

    def behave(task):
        os.kill(os.getpid(), number)

    signal.signal(number, signal.SIG_DFL)  # nohup leaves SIGHUP ignored
    made, executor = sweep(suite, tmp_path, behave)
    with pytest.raises(Interrupted) as stop:
        made.run("again")
    assert (executor.stopped, executor.killed) == (1, 1)
    assert stop.value.exit_code == 128 + number


def test_when_time_is_up_jobs_save_and_the_rest_stays(suite, tmp_path):
    def behave(task):
        if executor.stopped:
            return TaskResult(task, STOPPED)
        if len(executor.started) == 1:
            return succeed(task)
        made.deadline = time.monotonic()
        return None

    made, executor = sweep(suite, tmp_path, behave, deadline=math.inf)
    progress = made.run("again")
    assert len(executor.started) == 2
    assert (progress.count("done"), progress.left, progress.count("failed")) == (1, 3, 0)


def test_reported_jobs_start_when_their_own_search_has_ended(tmp_path):
    suite = read_suite(write_suite(tmp_path, SEARCH))

    def behave(task):
        leave_scores(task, task.request.overrides["update.lr"])
        return succeed(task)

    made, executor = sweep(suite, tmp_path, behave)
    progress = made.run("again")
    assert progress.count("done") == 8 + 4
    assert [("tuning" in label) for label in executor.started] == [True] * 8 + [False] * 4
    reported = [c for c in make_plan(suite, tmp_path).jobs if c.role == "reported"]
    assert {c.settings["update.lr"] for c in reported} == {2e-3}
    assert {c.state for c in reported} == {"done"}


def test_the_next_round_of_a_search_joins_the_sweep(tmp_path):
    """Four candidates; the two best once more with seed 10, then the best at the full budget, then what is reported."""
    rounds = "[[search.rounds]]\nseeds = [9]\nimages = 64\n[[search.rounds]]\nkeep = 2\nseeds = [9, 10]\nimages = 64\n"
    text = SEARCH.replace("seed = 9\n", "").replace("[search.budget]\nimages = 64\n", "")
    text = text.replace("lr = [1e-3, 2e-3]", "lr = [1e-3, 2e-3, 4e-3]").replace('["sdpo", "ddpo"]', '["ddpo"]')
    text = text[: text.index("[search.for")] + rounds + "[[search.rounds]]\nkeep = 1\nseeds = [9]\nimages = 128\n"
    suite = read_suite(write_suite(tmp_path, text))

    def behave(task):
        request = task.request
        score = request.overrides["update.lr"] * (1 if request.seed == 9 else -1)
        leave_scores(task, score)
        return succeed(task)

    made, executor = sweep(suite, tmp_path, behave)
    progress = made.run("again")
    tuning = [c for c in make_plan(suite, tmp_path).jobs if c.role == "tuning"]
    amounts = [(c.seed, c.settings["update.lr"], c.settings["budget.amount"]) for c in tuning]
    assert amounts[:3] == [(9, 1e-3, 64), (9, 2e-3, 64), (9, 4e-3, 64)]
    assert sorted(amounts[3:5]) == [(10, 2e-3, 64), (10, 4e-3, 64)]
    assert amounts[5:] == [(9, 4e-3, 128)], "equal means: the first of equals in the order of the round before"
    assert progress.count("done") == 6 + 2 and progress.left == 0
    assert [("tuning" in label) for label in executor.started] == [True] * 6 + [False] * 2


def test_a_repeated_tuning_run_that_wins_makes_the_same_sweep_run_the_reported_jobs_with_its_settings(tmp_path):
    """They were done with the settings of the best one before."""
    suite = read_suite(write_suite(tmp_path, SEARCH[: SEARCH.index("[search.for")], method='["ddpo"]'))

    def behave(task, fails=False):
        rate = task.request.overrides["update.lr"]
        if fails and rate == 2e-3:
            finish(task, "failed", "out of memory")
            return TaskResult(task, FAILED)
        leave_scores(task, rate)
        return succeed(task)

    first, _ = sweep(suite, tmp_path, lambda task: behave(task, fails=True))
    progress = first.run("again")
    assert (progress.count("done"), progress.count("failed")) == (1 + 2, 1)
    made, executor = sweep(suite, tmp_path, behave)
    progress = made.run("again")
    assert executor.started == [
        "ddpo emoji-align seed 9 (tuning)",
        "ddpo emoji-align seed 0",
        "ddpo emoji-align seed 1",
    ]
    reported = [c for c in make_plan(suite, tmp_path).jobs if c.role == "reported"]
    assert [(c.settings["update.lr"], c.state) for c in reported] == [(2e-3, "done")] * 2
    assert (progress.count("done"), progress.left) == (3, 0)


def test_a_tuning_run_that_is_stopped_from_outside_leaves_its_reported_jobs_to_the_next_sweep(tmp_path):
    """Neither is the search decided without it, nor does the sweep wait for what nobody runs."""
    suite = read_suite(write_suite(tmp_path, SEARCH[: SEARCH.index("[search.for")], method='["ddpo"]'))

    def behave(task, stops=False):
        rate = task.request.overrides["update.lr"]
        if stops and rate == 2e-3:
            finish(task, "interrupted")
            return TaskResult(task, STOPPED)
        leave_scores(task, rate)
        return succeed(task)

    deadline = time.monotonic() + 20
    first, executor = sweep(suite, tmp_path, lambda task: behave(task, stops=True), deadline=deadline)
    progress = first.run("again")
    assert executor.started == ["ddpo emoji-align seed 9 (tuning)"] * 2
    assert not progress.ending, "the clock has ended a sweep that waited"
    assert (progress.count("done"), progress.count("stopped"), progress.left) == (1, 1 + 2, 3)
    made, _ = sweep(suite, tmp_path, behave)
    progress = made.run("again")
    assert (progress.count("done"), progress.left) == (1 + 2, 0)
    reported = [c for c in make_plan(suite, tmp_path).jobs if c.role == "reported"]
    assert {c.settings["update.lr"] for c in reported} == {2e-3}


def test_only_failed_goes_on_with_the_rounds_of_a_search_whose_failed_runs_succeed(tmp_path):
    rounds = "[[search.rounds]]\nseeds = [9]\nimages = 64\n[[search.rounds]]\nkeep = 1\nseeds = [9]\nimages = 128\n"
    text = SEARCH.replace("seed = 9\n", "").replace("[search.budget]\nimages = 64\n", "")
    suite = read_suite(write_suite(tmp_path, text[: text.index("[search.for")] + rounds, method='["ddpo"]'))

    def fail(task):
        finish(task, "failed", "the reward service is down")
        return TaskResult(task, FAILED)

    def behave(task):
        leave_scores(task, task.request.overrides["update.lr"])
        return succeed(task)

    first, _ = sweep(suite, tmp_path, fail)
    first.run("again")
    for job in make_plan(suite, tmp_path).jobs:  # as a person who tries them again finds them
        assert job.state in ("failed", "waiting")
    made, _ = sweep(suite, tmp_path, behave, only_failed=True, deadline=time.monotonic() + 20)
    progress = made.run("again")
    assert (progress.count("done"), progress.left) == (3 + 2, 0)


def test_a_method_whose_whole_search_failed_fails_alone(tmp_path):
    suite = read_suite(write_suite(tmp_path, SEARCH))

    def behave(task):
        if task.request.method == "ddpo":
            finish(task, "failed", "diverged")
            return TaskResult(task, FAILED)
        leave_scores(task, 1.0)
        return succeed(task)

    made, _ = sweep(suite, tmp_path, behave)
    progress = made.run("again")
    assert (progress.count("done"), progress.count("failed")) == (6 + 2, 2 + 2)


def test_force_moves_what_is_there_aside_and_refuses_what_is_in_use(suite, tmp_path):
    plan = make_plan(suite, tmp_path)
    for job, state in zip(plan.jobs, ("done", "failed")):
        finish_job(tmp_path, job, state)
    assert move_to_replaced(replace(plan, jobs=plan.jobs[1:]), only_failed=True) == 1
    assert make_plan(suite, tmp_path).jobs[1].state == "new"
    assert make_plan(suite, tmp_path).jobs[0].state == "done"
    kept = [path.name for path in (tmp_path / "replaced").glob("*/*")]
    assert kept == [plan.jobs[1].run_id]
    with folder(tmp_path, plan.jobs[0]).locked(), pytest.raises(Busy, match="another process"):
        move_to_replaced(plan, only_failed=False)
    assert folder(tmp_path, plan.jobs[0]).state == "done"


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """The command on a suite whose four jobs are done, failed, interrupted and new; what it started and printed."""
    path = write_suite(tmp_path)
    suite, out = read_suite(path), tmp_path / "out"
    for job, state in zip(make_plan(suite, out).jobs, ("done", "failed", "interrupted")):
        finish_job(out, job, state)
    executor = FakeExecutor(succeed)
    monkeypatch.setattr(sweep_command, "_executor", lambda *arguments: executor)
    monkeypatch.setattr(sweep_command, "measured_rates", lambda *arguments: ({}, "not measured"))

    def call(*words):
        with pytest.raises(SystemExit):
            main(["sweep", str(path), "--out", str(out), "--json", *words])
        return executor.started, json.loads(capsys.readouterr().out)

    return call, [job.label for job in make_plan(suite, out).jobs]


@pytest.mark.parametrize(
    ("words", "chosen", "states"),
    [
        ([], [0, 1, 2, 3], ["done", "failed", "unfinished", "new"]),
        (["--only-failed"], [1], ["failed"]),
        (["--force"], [0, 1, 2, 3], ["new"] * 4),
        (["--force", "--only-failed"], [1], ["new"]),
    ],
    ids=["plain", "only-failed", "force", "both"],
)
def test_a_dry_run_shows_the_jobs_that_the_sweep_would_begin_with(command, words, chosen, states):
    call, labels = command
    started, data = call("--dry-run", *words)
    assert [f"{job['method']} {job['reward']} seed {job['seed']}" for job in data["cells"]] == [
        labels[i] for i in chosen
    ]
    assert [job["state"] for job in data["cells"]] == states and not started


def test_force_leaves_only_failed_its_meaning(command):
    """Failed jobs start anew, and no other one."""
    call, labels = command
    started, data = call("--force", "--only-failed")
    assert started == [labels[1]] and [job["outcome"] for job in data["cells"]] == ["done"]


def test_a_filter_by_state_is_not_asked_again_when_the_state_has_changed(command):
    call, labels = command
    started, _ = call("--force", "--filter", "state=done")
    assert started == [labels[0]]


@pytest.mark.parametrize("record", [{"reported": {"other": ""}, "tuning": []}, None, "{"])
def test_a_suite_that_takes_the_place_of_another_of_its_name_says_so(tmp_path, monkeypatch, capsys, record):
    path, out = write_suite(tmp_path), tmp_path / "out"
    monkeypatch.setattr(sweep_command, "_executor", lambda *arguments: FakeExecutor(succeed))
    (out / "suites").mkdir(parents=True)
    if record:
        (out / "suites" / f"{path.stem}.json").write_text(record if record == "{" else json.dumps(record))
    said = []
    for _ in range(2):  # the second sweep has the first one's runs
        with pytest.raises(SystemExit):
            main(["sweep", str(path), "--out", str(out)])
        said.append(f"suites/{path.stem}.json was of another suite" in capsys.readouterr().err)
    assert said == [isinstance(record, dict), False]


def test_the_resume_command_never_begins_again():
    from sdpo_bench.cli.commands.sweep import resume_command

    typed = ["sweep", "my suite.toml", "--force", "--only-failed", "--jobs", "2"]
    assert resume_command(typed) == "sdpo-bench sweep 'my suite.toml' --jobs 2"


@pytest.mark.parametrize(("jobs", "cores", "share"), [(1, 8, 8), (2, 8, 4), (3, 8, 2), (4, 2, 1)])
def test_processes_share_the_processors(monkeypatch, jobs, cores, share):
    from sdpo_bench.sweep import local_executor

    monkeypatch.setattr(local_executor, "usable_cores", lambda: cores)
    assert local_executor.LocalExecutor(jobs).share == share
    assert local_executor.LocalExecutor(jobs, threads=5).share == 5


def test_the_preloaded_libraries_say_nothing():
    """transformers advises to install torchvision, which no job needs; each sweep and study printed it."""
    loud = {key: value for key, value in os.environ.items() if not key.endswith("_VERBOSITY")}
    done = subprocess.run([sys.executable, "-c", "import sdpo_bench.sweep.preload"], env=loud, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
