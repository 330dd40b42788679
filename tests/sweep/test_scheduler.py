"""Sweeps with real processes on the smallest model: failures, kills, two at once, and the same bytes in the end."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import preload  # noqa: F401  (forked processes then have it)
import pytest
from suite_files import tiny_suite

from sdpo_bench.cli.entry import main
from sdpo_bench.running import evaluation_process
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.sweep import local_executor
from sdpo_bench.sweep.plan import make_plan
from sdpo_bench.sweep.suite import read_suite

BROKEN = "[variants.good]\n[variants.broken.update]\nlr = 1e30\n"
PATIENCE = 900  # seconds, for a machine with much else to do; no test waits for them to pass
pytestmark = pytest.mark.timeout(3 * PATIENCE)
FILES = ("train.jsonl", "eval.parquet", "lora/pytorch_lora_weights.safetensors", "status")


@pytest.fixture(autouse=True)
def forked(monkeypatch):
    """Processes are forked from this one, which has imported everything already."""
    monkeypatch.setattr(local_executor, "START_METHOD", "fork")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def sweep(path, out, *more):
    """Exit code of the command, in this process."""
    with pytest.raises(SystemExit) as stop:
        one = [] if "--threads" in more else ["--threads", "1"]
        main(["sweep", str(path), "--out", str(out), *one, *more])
    return stop.value.code


def jobs(path, out):
    return make_plan(read_suite(path), out).jobs


def content(out):
    """What every run left, but for its lock, times and place."""
    folders = sorted(path for path in (out / "runs").iterdir() if path.name != "lock")
    return {(f.name, name): (f / name).read_bytes() for f in folders for name in FILES if (f / name).exists()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_pipe):
    """A suite and its results, swept one job after the other."""
    place = tmp_path_factory.mktemp("undisturbed")
    path = tiny_suite(place, tiny_pipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_executor, "START_METHOD", "fork")
        assert sweep(path, place / "out") == 0
    return path, place / "out"


def test_a_sweep_leaves_finished_runs_logs_and_a_record(undisturbed, capfd):
    path, out = undisturbed
    assert {job.state for job in jobs(path, out)} == {"done"}
    for job in jobs(path, out):
        log = (out / "logs" / f"{job.run_id}.log").read_text()
        assert f"sdpo-bench run --method {job.method}" in log
        assert log.count("\n== sdpo-bench") == 1
    record = json.loads((out / "suites" / "mine.json").read_text())
    assert set(record["reported"]) == {job.run_id for job in jobs(path, out)}
    before = content(out)
    assert sweep(path, out) == 0
    assert content(out) == before
    assert "2 of 2 jobs done" in capfd.readouterr().out


@pytest.mark.parametrize(("small", "threads"), [(True, 1), (False, 3)])
def test_a_job_has_the_threads_of_the_same_run_alone(tmp_path, tiny_pipe, monkeypatch, small, threads):
    """One for a small denoiser, however many processors there are: a second one changes last digits."""
    monkeypatch.setattr(local_executor, "usable_cores", lambda: 3)
    monkeypatch.setattr(evaluation_process, "is_small", lambda policy: small)
    path = tiny_suite(tmp_path, tiny_pipe)
    assert sweep(path, tmp_path / "out", "--threads", "0", "--filter", "method=ddpo") == 0
    (run,) = (tmp_path / "out" / "runs").glob("ddpo-*")
    assert RunFolder(run).record()["hardware"]["threads"] == threads


def test_a_done_job_that_has_lost_its_scores_is_judged_again(undisturbed, tmp_path, capfd):
    """Those that are damaged may hold something yet: the job fails, and says what to do."""
    path, there = undisturbed
    out = Path(shutil.copytree(there, tmp_path / "out"))
    first, second = (out / "runs" / job.run_id / "eval.parquet" for job in jobs(path, out))
    kept = first.read_bytes()
    first.unlink()
    os.truncate(second, 100)
    assert sweep(path, out, "--json") == 1
    assert first.read_bytes() == kept
    data = json.loads(capfd.readouterr().out)
    assert [job["state"] for job in data["cells"]] == ["done", "failed"] and (data["failed"], data["left"]) == (1, 0)
    assert "eval.parquet' is damaged" in data["cells"][1]["message"] and "Delete it" in data["cells"][1]["message"]
    second.unlink()
    assert sweep(path, out) == 0 and content(out) == content(there)


def test_a_finished_suite_with_one_more_step_count_is_judged_at_it_and_not_trained(undisturbed, tmp_path, capfd):
    _, there = undisturbed
    out = Path(shutil.copytree(there, tmp_path / "out"))
    path = Path(shutil.copytree(there.parent, tmp_path / "suite", ignore=shutil.ignore_patterns("out"))) / "mine.toml"
    path.write_text(path.read_text().replace("steps = [1]", "steps = [1, 2]"))
    assert [job.state for job in jobs(path, out)] == ["unfinished"] * 2
    assert sweep(path, out) == 0
    assert "2 of 2 jobs done" in capfd.readouterr().out
    before, after = content(there), content(out)
    for job in jobs(path, out):
        rows = pd.read_parquet(out / "runs" / job.run_id / "eval.parquet")
        assert set(rows.steps) == {1, 2}
        for name in (FILES[0], FILES[2]):
            assert after[job.run_id, name] == before[job.run_id, name]


def test_finished_runs_without_the_curve_that_a_suite_asks_for_are_counted(undisturbed, tmp_path, capfd):
    _, there = undisturbed
    out = Path(shutil.copytree(there, tmp_path / "out"))
    path = Path(shutil.copytree(there.parent, tmp_path / "suite", ignore=shutil.ignore_patterns("out"))) / "mine.toml"
    assert sweep(path, out) == 0
    assert "learning curve" not in capfd.readouterr().err
    path.write_text(path.read_text().replace("steps = [1]", "steps = [1]\nevery = 1"))
    assert sweep(path, out) == 0
    said = capfd.readouterr()
    assert "2 of 2 jobs done" in said.out
    assert "eval.every has no effect on finished runs: 2 of 2 were trained without a learning curve" in said.err


@pytest.mark.slow
def test_a_failed_job_gives_exit_code_1_and_the_others_go_on(tmp_path, tiny_pipe, capfd):
    path = tiny_suite(tmp_path, tiny_pipe, BROKEN, method='["ddpo"]')
    assert sweep(path, tmp_path / "out", "--jobs", "2", "--json") == 1
    data = json.loads(capfd.readouterr().out)
    by_variant = {job["variant"]: job for job in data["cells"]}
    assert by_variant["good"]["state"] == "done"
    assert by_variant["broken"]["state"] == "failed"
    assert data["failed"] == 1
    message = by_variant["broken"]["message"]
    assert message
    log = (tmp_path / "out" / "logs" / f"{by_variant['broken']['run']}.log").read_text()
    assert message.split(".")[0] in log
    assert sweep(path, tmp_path / "out", "--only-failed") == 1
    said = capfd.readouterr()
    assert "started: ddpo jpeg-incompressibility good" not in said.err
    assert "--only-failed" in said.out and message.split()[0] in said.out


def background(path, out, *more):
    """The same sweep in a process group of its own."""

    def run():
        os.setsid()
        os.environ["OMP_NUM_THREADS"] = "1"
        main(["sweep", str(path), "--out", str(out), "--threads", "1", *more])

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    wait_for(lambda: process.exitcode is not None or os.getpgid(process.pid) == process.pid)
    return process


def wait_for(condition, gone=lambda: False):
    """Until the condition holds; whoever could still bring it about must not be ``gone``."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert not gone() or condition(), "it ended too early"
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_at_random_and_started_again_it_reaches_the_same_bytes(undisturbed, tmp_path):
    """SIGKILL of the whole group, three times at moments drawn once and for all."""
    path, whole = undisturbed
    out = tmp_path / "out"
    moments = random.Random(4)
    for _ in range(3):
        process = background(path, out, "--jobs", "2", "--checkpoint-every", "1")
        wait_for(lambda: list(out.glob("runs/*/train.jsonl")), lambda: not process.is_alive())  # noqa: B023
        time.sleep(moments.uniform(0.0, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    assert any(job.state != "done" for job in jobs(path, out)), "killed too late to show anything"
    assert sweep(path, out, "--jobs", "2") == 0
    assert content(out) == content(whole)


@pytest.mark.slow
def test_two_sweeps_at_once_share_the_work(undisturbed, tmp_path):
    path, whole = undisturbed
    processes = [background(path, tmp_path / "out") for _ in range(2)]
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0]
    assert content(tmp_path / "out") == content(whole)
    for job in jobs(path, tmp_path / "out"):
        rows = RunFolder(tmp_path / "out" / "runs" / job.run_id).log("timing.jsonl")
        epochs = [row["epoch"] for row in rows]
        assert epochs == list(range(1, 4)), "no epoch was done twice"


def test_children_end_when_the_sweep_is_killed_alone(tmp_path, tiny_pipe):
    path = tiny_suite(tmp_path, tiny_pipe, images="40000", method='["ddpo"]')
    process = background(path, tmp_path / "out", "--checkpoint-every", "1")
    (job,) = jobs(path, tmp_path / "out")
    folder = RunFolder(tmp_path / "out" / "runs" / job.run_id)
    wait_for(lambda: list(folder.path.glob("checkpoints/*")), lambda: not process.is_alive())
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    wait_for(lambda: not folder.is_locked)
    assert folder.state == "interrupted"


def test_a_results_folder_that_cannot_be_written(tmp_path, tiny_pipe, capsys):
    path = tiny_suite(tmp_path, tiny_pipe)
    (tmp_path / "file").write_text("")
    assert sweep(path, tmp_path / "file" / "out") == 3
    assert "cannot be written" in capsys.readouterr().err


def test_weights_that_are_missing_fail_the_job_not_the_sweep(tmp_path, tiny_pipe, capfd, monkeypatch):
    """Found when the job starts, before it has a record; plan and report still know why."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    path = tiny_suite(tmp_path, tiny_pipe, model='["sd-turbo"]', method='["ddpo"]')
    out = tmp_path / "out"
    assert sweep(path, out) == 1
    assert "0 of 1 jobs done, 1 failed" in capfd.readouterr().out
    (job,) = jobs(path, out)
    assert job.state == "failed"
    assert "neither cached here nor reachable" in job.message  # the printed table may break the line anywhere
    from sdpo_bench.results.read_results import load_results

    (notice,) = load_results(out).notices
    assert notice.text.startswith("failed before training began: the weights of 'stabilityai/sd-turbo'")


def test_a_hub_model_that_cannot_be_configured_stops_the_sweep(tmp_path, tiny_pipe, capsys):
    path = tiny_suite(tmp_path, tiny_pipe, model='["nobody/nothing"]', method='["ddpo"]')
    assert sweep(path, tmp_path / "out") == 3
    assert "sdpo-bench fetch nobody/nothing" in " ".join(capsys.readouterr().err.split())


OPTIONS_OF_NO_USE = [
    ["--address", "x:1"],
    ["--gpus-per-cell", "1"],
    ["--max-hours", "0"],
    ["--executor", "ray", "--jobs", "2"],
    ["--executor", "ray", "--threads", "1"],
]


@pytest.mark.parametrize("options", OPTIONS_OF_NO_USE)
def test_options_that_would_do_nothing_are_refused(tmp_path, tiny_pipe, options, capsys):
    assert sweep(tiny_suite(tmp_path, tiny_pipe), tmp_path / "out", *options) == 2
    assert not (tmp_path / "out" / "runs").exists() or not list((tmp_path / "out" / "runs").iterdir())


@pytest.mark.slow
def test_the_command_itself_stops_on_ctrl_c_and_goes_on(tmp_path, tiny_pipe):
    """As a shell runs it: SIGINT to the whole group, exit code 130, and the printed command finishes the work."""
    path = tiny_suite(tmp_path, tiny_pipe, images="40", method='["ddpo"]')
    words = ["sweep", str(path), "--out", str(tmp_path / "out"), "--checkpoint-every", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sdpo_bench", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_for(lambda: list((tmp_path / "out").glob("runs/*/checkpoints/*")), lambda: process.poll() is not None)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Go on with" in said and "Traceback" not in said
    (job,) = jobs(path, tmp_path / "out")
    assert RunFolder(tmp_path / "out" / "runs" / job.run_id).state == "interrupted"
    assert sweep(path, tmp_path / "out") == 0
    assert Path(tmp_path / "out" / "runs" / job.run_id / "grid.png").exists()
