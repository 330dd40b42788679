"""A pipe, a device or a folder in the place of a file is refused with its name, and nobody waits for it."""

import os
import signal
from pathlib import Path

import pytest

from sdpo_bench.errors import Unwritable, UsageError
from sdpo_bench.evaluation.evaluate import read_rows
from sdpo_bench.runs.run_folder import RunFolder, check_writable
from sdpo_bench.statistics.eval_table import read_scores
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
