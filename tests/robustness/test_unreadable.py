"""Folders and files that may not be looked into: whoever asks for one is told why, nobody else is bothered."""

import builtins
import io
import os

import pytest
from report_factory import make_run, spread
from suite_files import FakeExecutor, succeed, tiny_suite

from sdpo_bench.errors import MissingError, Unwritable, UsageError
from sdpo_bench.results.compare_names import find_sides
from sdpo_bench.results.read_results import load_results
from sdpo_bench.results.run_list import list_runs
from sdpo_bench.results.suite_records import read_records
from sdpo_bench.runs.adapter import LORA_FILE, check_seal
from sdpo_bench.runs.run_folder import RunFolder, check_writable, find_run
from sdpo_bench.settings import Runtime
from sdpo_bench.sweep.plan import make_plan
from sdpo_bench.sweep.scheduler import Sweep
from sdpo_bench.sweep.suite import read_suite


def close(folder, patch):
    """Refuse every look into a folder of this process, as another user's folder of mode 0700 does; root sees all."""

    def refusing(function):
        def called(path, *args, **kwargs):
            if isinstance(path, str | os.PathLike) and str(path).startswith(f"{folder}{os.sep}"):
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *args, **kwargs)

        return called

    for owner, name in ((os, "stat"), (os, "open"), (os, "scandir"), (builtins, "open"), (io, "open")):
        patch.setattr(owner, name, refusing(getattr(owner, name)))


def close_file(file, patch):
    """A file of another user's with mode 0600."""
    opened = io.open

    def refusing(path, *args, **kwargs):
        if str(path) == str(file):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    for owner in (io, builtins):
        patch.setattr(owner, "open", refusing)


def test_a_closed_run_does_not_keep_others_from_being_found(tmp_path, monkeypatch):
    mine, other = (make_run(tmp_path, "sdpo", seed, spread([1, 2, 3])) for seed in (0, 1))
    close(other, monkeypatch)
    assert find_run(tmp_path, mine.name).path == mine
    with pytest.raises(UsageError, match=r"run\.json' cannot be read: Permission denied"):
        find_run(tmp_path, other.name).record()


def test_a_closed_run_is_listed_and_not_called_damaged(tmp_path, monkeypatch):
    mine, other = (make_run(tmp_path, "sdpo", seed, spread([1, 2, 3])) for seed in (0, 1))
    close(other, monkeypatch)
    states = {row[0]: (row[1], row[-1]) for row in list_runs(tmp_path)[1]}
    assert states[mine.name][0] == "done"
    assert states[other.name][0] == "not used" and "Permission denied" in states[other.name][1]


def test_a_closed_status_is_not_called_damaged(tmp_path, monkeypatch):
    run = make_run(tmp_path, "sdpo", 0, spread([1, 2, 3]))
    close_file(run / "status", monkeypatch)
    (one,) = load_results(tmp_path).runs
    assert (one.state, one.message) == ("unknown", "its status file cannot be read: Permission denied. Ask whose it is")


def test_a_closed_run_fails_its_job_and_no_other(tmp_path, tiny_pipe, monkeypatch):
    path, out = tiny_suite(tmp_path, tiny_pipe, method='["ddpo", "d3po"]'), tmp_path / "out"
    mine, other = make_plan(read_suite(path), out).jobs
    (out / "runs" / other.run_id).mkdir(parents=True)
    close(out / "runs" / other.run_id, monkeypatch)
    executor = FakeExecutor(succeed)
    progress = Sweep(lambda: make_plan(read_suite(path), out), executor, Runtime(out=out), tell=lambda *_: None).run(
        "x"
    )
    assert {cell.run_id: progress.outcomes[key] for key, cell in progress.jobs.items()} == {
        mine.run_id: "done",
        other.run_id: "failed",
    }
    assert "Permission denied" in progress.reasons[other.key]


def test_a_closed_folder_of_a_base_model_is_no_place_to_write(tmp_path, monkeypatch):
    run = make_run(tmp_path, "sdpo", 0, spread([1, 2, 3]))
    close(run, monkeypatch)
    with pytest.raises(Unwritable, match="cannot be written: Permission denied. Choose another results folder"):
        check_writable(tmp_path, RunFolder(run))


def test_a_closed_record_of_a_suite_is_not_called_damaged(tmp_path, monkeypatch):
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "one.json").write_text("{}")
    close_file(tmp_path / "suites" / "one.json", monkeypatch)
    ((_, problem),) = read_records(tmp_path)[1]
    assert problem == "this suite's record cannot be read: Permission denied. Ask whose it is"


def test_where_no_run_can_be_read_a_comparison_does_not_blame_an_option(tmp_path, monkeypatch):
    close(make_run(tmp_path, "sdpo", 0, spread([1, 2, 3])), monkeypatch)
    with pytest.raises(UsageError, match=r"no run in '.*' can be read. See: sdpo-bench list runs --out"):
        find_sides(load_results(tmp_path), "sdpo", "base", {})


def test_a_closed_adapter_is_not_called_damaged(tmp_path, monkeypatch):
    """The advice for a damaged one is to delete it."""
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / LORA_FILE).write_bytes(b"weights")
    close(tmp_path / "lora", monkeypatch)
    with pytest.raises(MissingError, match="cannot be read: Permission denied"):
        check_seal(tmp_path / "lora")
