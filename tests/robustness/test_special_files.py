"""A pipe, a device or a folder in the place of a file is refused with its name, and nobody waits for it."""

import os
import shlex
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
from report_factory import base_frame, make_base, make_run, spread

from forked import exit_code
from sdpo_bench.config.resolve import Request
from sdpo_bench.errors import Unwritable, UsageError
from sdpo_bench.evaluation.evaluate import read_rows
from sdpo_bench.runs.run_folder import RunFolder, check_writable
from sdpo_bench.settings import Runtime
from sdpo_bench.statistics.eval_table import read_scores
from sdpo_bench.sweep.ray_executor import RayExecutor
from sdpo_bench.sweep.ray_transfer import keep_aside, pack, unpack
from sdpo_bench.sweep.worker import DONE, FAILED, Job, Said
from sdpo_bench.training import checkpoint


def pipe(path: Path) -> Path:
    """Put a pipe that nobody writes to in the place of a file."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


@pytest.fixture
def impatient():
    """Waiting for a pipe fails the test."""

    def stop(number, frame):
        raise TimeoutError("something waits for a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(200)  # far beyond what it takes on a busy machine
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.create({"kind": "run"})
    return folder


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("target", ["pipe", "/dev/zero"])
def test_a_run_folder_refuses_what_is_no_file(run, target):
    pipe(run.path / "status") if target == "pipe" else (run.path / "status").symlink_to(target)
    with pytest.raises(UsageError, match=r"status' cannot be read: not a regular file"):
        _ = run.status
    run.set_status("new")
    assert run.state == "new"


def test_a_folder_in_the_place_of_a_file_is_named(run):
    (run.path / "status").mkdir()
    with pytest.raises(Unwritable, match=r"status' cannot be written: Is a directory.*Delete the folder in its place"):
        run.set_status("new")
    assert not list(run.path.glob(".*"))


@pytest.mark.usefixtures("impatient")
def test_checkpoints_that_are_pipes_are_passed_over(run):
    pipe(run.checkpoints / "epoch-000001.safetensors")
    path, warnings = checkpoint.latest(run)
    assert path is None and "not a regular file" in warnings[0]


def test_a_file_in_the_place_of_the_checkpoints_is_named(run):
    run.checkpoints.write_text("")
    with pytest.raises(Unwritable, match=r"/run/checkpoints' cannot be written: File exists"):
        checkpoint.write(run, 1, ({}, "{}"))


@pytest.mark.parametrize("name", ["lora", "checkpoints"])
def test_a_file_in_the_place_of_a_folder_is_named_before_a_training(run, name):
    (run.path / name).write_text("")
    with pytest.raises(UsageError, match=f"/run/{name}' must be a folder. Delete what is there"):
        check_writable(run.path.parent, run)


def test_what_somebody_has_put_beside_checkpoints_is_none(run):
    run.checkpoints.mkdir()
    (run.checkpoints / "epoch-best.safetensors").write_text("mine")
    assert checkpoint.latest(run) == (None, [])


@pytest.mark.usefixtures("impatient")
def test_evaluation_rows_are_not_read_from_a_pipe(run):
    pipe(run.evaluation)
    with pytest.raises(UsageError, match=r"is damaged .*not a regular file"):
        read_rows(run)
    assert "not a regular file" in read_scores(run.evaluation).problems[0]


@pytest.fixture
def arriving(tmp_path):
    """Files of a cell that another node has done with a base model, as they come over the network."""
    there = tmp_path / "there"
    make_base(there, base_frame(spread([0, 0, 0])))
    folder = make_run(there, "ddpo", 0, spread([1, 1, 1]))
    (there / "logs").mkdir()
    (there / "logs" / f"{folder.name}.log").write_text("of the other node\n")
    (base,) = (path.name for path in (there / "runs").iterdir() if path.name.startswith("base-"))
    return folder.name, base, pack(there, [folder.name, base], folder.name)


@pytest.mark.usefixtures("impatient")
def test_what_other_nodes_send_is_not_joined_with_a_pipe(tmp_path, arriving):
    """The cell fails, the sweep goes on, and the run, whose files have come, does not read as done."""
    name, base, files = arriving
    out = tmp_path / "out"
    (out / "runs" / base).mkdir(parents=True)
    where = pipe(out / "runs" / base / "eval.parquet")
    code = exit_code(lambda: (signal.alarm(200), unpack(files, out)), tmp_path / "out.txt", tmp_path / "err.txt")
    assert code == 99 and "not a regular file" in (tmp_path / "err.txt").read_text()
    assert where.is_fifo() and not list(out.glob(".arriving-*"))
    run = RunFolder(out / "runs" / name)
    assert run.log() and run.state == "new"


def brought_back(folder, name, files):
    """What a sweep hears of a cell that is done and has sent ``files``."""
    executor = RayExecutor.__new__(RayExecutor)
    job = Job("a cell", name, Request(), Runtime(out=folder), "")
    executor.out, executor._running = folder, {"reference": (job, ExitStack())}
    errors = SimpleNamespace(TaskCancelledError=KeyError, WorkerCrashedError=KeyError, RayError=KeyError)
    executor._ray = SimpleNamespace(exceptions=errors, get=lambda reference: (Said(DONE), files))
    return executor._end("reference")


def test_a_cell_whose_files_cannot_be_brought_back_has_failed(tmp_path, arriving):
    name, base, files = arriving
    (tmp_path / "runs" / base).mkdir(parents=True)
    pipe(tmp_path / "runs" / base / "eval.parquet")
    ended = brought_back(tmp_path, name, files)
    assert ended.code == FAILED and "could not be brought back: " in ended.message
    assert not (tmp_path / "runs" / name / "status").exists()
    _, _, way = ended.message.partition("mend that and type: ")
    try:
        subprocess.run(shlex.split(way), check=True)
    finally:
        Path(shlex.split(way)[2]).unlink()
    assert RunFolder(tmp_path / "runs" / name).state == "done", "nothing of the training is lost"


def test_files_that_cannot_even_be_kept_are_said_to_be_lost(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device, so they are lost" in keep_aside(b"half", tmp_path, "run")
    assert not list(tmp_path.iterdir()), "nor takes half of them room"


def test_a_cell_whose_log_cannot_be_brought_back_does_without(tmp_path, arriving):
    name, _, files = arriving
    (tmp_path / "logs").write_text("")
    ended = brought_back(tmp_path, name, files)
    assert (ended.code, ended.message) == (DONE, "") and f"{name}.log' cannot be written: " in ended.note
    assert RunFolder(tmp_path / "runs" / name).state == "done"
