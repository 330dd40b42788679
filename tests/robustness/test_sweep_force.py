"""``sweep --force`` moves runs out of the way: on one disk, between two, and where it is refused."""

import errno
import os

import pytest
from suite_files import write_suite

from sdpo_bench.cli.entry import main
from sdpo_bench.errors import Unwritable
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.sweep.plan import make_plan
from sdpo_bench.sweep.scheduler import move_to_replaced
from sdpo_bench.sweep.suite import read_suite


@pytest.fixture
def done(tmp_path):
    """A suite, its plan, and the folder of its only run, which is done."""
    path = write_suite(tmp_path, method='["ddpo"]', seed="[0]")
    plan = make_plan(read_suite(path), tmp_path / "out")
    run = RunFolder(plan.out / "runs" / plan.jobs[0].run_id)
    run.path.mkdir(parents=True)
    run.set_status("done")
    return path, plan, run


def test_runs_are_moved_to_another_disk_too(done, monkeypatch):
    def other_disk(source, target):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))

    _, plan, run = done
    monkeypatch.setattr(os, "rename", other_disk)
    assert move_to_replaced(plan, only_failed=False) == 1
    (moved,) = (plan.out / "replaced").glob("*/*")
    assert RunFolder(moved).state == "done" and moved.name == run.run_id and not run.path.exists()


def test_a_run_that_cannot_be_moved_stays_and_is_named(done, monkeypatch, capsys):
    def refused(source, target):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(source))

    path, plan, run = done
    monkeypatch.setattr("shutil.move", refused)
    with pytest.raises(Unwritable, match="Permission denied"):
        move_to_replaced(plan, only_failed=False)
    with pytest.raises(SystemExit) as stop:
        main(["sweep", str(path), "--out", str(plan.out), "--force"])
    said = capsys.readouterr().err
    assert stop.value.code == 3 and f"'{run.path}' cannot be moved to" in said and "same command again" in said
    assert run.state == "done"
