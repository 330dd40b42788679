"""Standard error and logs that cannot be written: the words are lost, the work is not."""

import errno
import os
import sys
from pathlib import Path

import preload  # noqa: F401  (forked processes then have it)
import pytest
from suite_files import tiny_suite

from forked import command, exit_code
from sdpo_bench.sweep import local_executor
from sdpo_bench.system.streams import Log, Lossy, open_log

FULL = Path("/dev/full")


def test_a_log_whose_disk_is_full_takes_everything_and_keeps_nothing(tmp_path):
    with open_log(tmp_path / "logs" / "a.log") as log:
        print("kept", file=log)
    assert (tmp_path / "logs" / "a.log").read_text() == "kept\n"
    with Log(Lossy(FULL, "w")) as log:
        print("dropped", file=log)  # a line at a time: a refused one would raise here
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), open(FULL, "w", buffering=1) as plain:
        print("refused", file=plain)


@pytest.mark.parametrize("obstacle", ["a file for its folder", "a folder in its place"])
def test_a_log_that_cannot_be_opened_leads_nowhere(tmp_path, obstacle):
    path = tmp_path / "logs" / "a.log"
    path.mkdir(parents=True) if obstacle == "a folder in its place" else path.parent.write_text("")
    with open_log(path) as log:
        print("dropped", file=log)
    assert path.is_dir() or path.parent.is_file(), "nothing was made in its place"


def test_progress_that_cannot_be_written_ends_no_sweep(tmp_path, tiny_pipe, monkeypatch):
    monkeypatch.setattr(local_executor, "START_METHOD", "fork")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path, out = tiny_suite(tmp_path, tiny_pipe, method='["ddpo"]'), tmp_path / "out"

    def work():
        sys.__stderr__ = sys.stderr
        command(["sweep", str(path), "--out", str(out), "--threads", "1"])

    assert exit_code(work, tmp_path / "said", FULL) == 0
    assert "1 of 1 jobs done, 0 failed, 0 left" in (tmp_path / "said").read_text()


def test_an_error_that_cannot_be_told_keeps_its_exit_code(tmp_path):
    def work():
        sys.__stderr__ = sys.stderr
        command(["list", "nonsense"])

    assert exit_code(work, tmp_path / "said", FULL) == 2


@pytest.mark.parametrize("words", [["list", "methods"], ["list", "methods", "--json"], ["sweep", "smoke", "--dry-run"]])
def test_a_reader_that_has_gone_is_no_failure(tmp_path, monkeypatch, words):
    """As of ``| head -1``."""
    monkeypatch.setattr("sdpo_bench.cli.commands.sweep.measured_rates", lambda *arguments: ({}, "not measured"))

    def work():
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        sys.__stdout__ = sys.stdout
        command(words)

    assert exit_code(work, tmp_path / "said", tmp_path / "told") == 0
    assert not (tmp_path / "told").read_text()
