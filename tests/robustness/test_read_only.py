"""Results of somebody else, or on a disk that is mounted read-only: what is there is shown, the rest is refused."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from finished_run import call, copy_of, make, words_of
from read_only import mount_read_only
from suite_files import tiny_suite

from sdpo_bench.config.resolve import resolve
from sdpo_bench.running.run_one import run_job
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.settings import Runtime
from sdpo_bench.sweep.plan import make_plan
from sdpo_bench.sweep.suite import read_suite


@pytest.fixture(scope="module")
def words(tiny_pipe, tmp_path_factory):
    reward, few = "jpeg-incompressibility+jpeg-compressibility*0.5", {"reward.reference_images": 4}
    return [*words_of(tmp_path_factory.mktemp("prompts"), tiny_pipe, reward, 8, **few), "--json"]


@pytest.fixture(scope="module")
def made(words, tmp_path_factory):
    return make(words, tmp_path_factory.mktemp("made") / "results")


@pytest.fixture
def results(made, tmp_path):
    return copy_of(made, tmp_path / "results")


def content(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_finished_run_is_shown_where_nothing_can_be_written(results, words, capsys, monkeypatch):
    out, _ = results
    code, writable, _ = call(capsys, *words, "--out", out)
    assert code == 0
    before = content(out)
    mount_read_only(out, monkeypatch)
    code, shown, said = call(capsys, *words, "--out", out)
    assert (code, json.loads(shown)) == (0, json.loads(writable)), said
    assert json.loads(shown)["table"] and content(out) == before


def test_a_finished_run_is_shown_on_a_full_disk(results, words, capsys, monkeypatch):
    """An empty file can still be made there, so the folder seems to be writable."""
    out, _ = results
    before = content(out)

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, shown, said = call(capsys, *words, "--out", out)
    assert code == 0 and json.loads(shown)["table"], said
    assert content(out) == before


@pytest.mark.parametrize("by", ["name", "path"])
def test_scores_that_are_there_are_shown_where_nothing_can_be_written(results, capsys, monkeypatch, by):
    out, run = results
    code, writable, _ = call(capsys, "eval", run.run_id, "--out", out, "--json")
    assert code == 0
    mount_read_only(out, monkeypatch)
    monkeypatch.chdir(out.parent)
    where = ["eval", run.run_id, "--out", out] if by == "name" else ["eval", run.path]
    code, shown, said = call(capsys, *where, "--json")
    assert (code, json.loads(shown)) == (0, json.loads(writable)), said


def test_what_is_missing_is_refused_with_a_way_on(results, words, capsys, monkeypatch):
    out, run = results
    advice = f"the results folder '{out}' cannot be written: Read-only file system. Go on in a copy of it: cp -r {out}"
    with monkeypatch.context() as patch:
        mount_read_only(out, patch)
        for asked in (["--steps", "1,3"], ["--images", "2"], ["--rewards", "jpeg-compressibility", "--steps", "2"]):
            code, _, said = call(capsys, "eval", run.run_id, "--out", out, *asked)
            assert code == 3 and "lacks scores that are asked for" in said and advice in said, said
        code, _, said = call(capsys, *words, "--out", out, "--seed", "1")
        assert code == 3 and f"'{out}' cannot be written" in said and "another results folder with --out FOLDER" in said
    run.set_status("interrupted")
    mount_read_only(out, monkeypatch)
    code, _, said = call(capsys, *words, "--out", out)
    assert code == 3 and "is not done (state: interrupted)" in said and advice in said
    assert f"then the same command for {run.run_id} with --out COPY" in said


@pytest.mark.parametrize("whose", ["run", "base"])
def test_scores_that_are_missing_are_named_by_their_folder(results, capsys, monkeypatch, whose):
    out, run = results
    (base,) = (out / "runs").glob("base-*")
    lacking = run.path if whose == "run" else base
    (lacking / "eval.parquet").unlink()
    mount_read_only(out, monkeypatch)
    code, _, said = call(capsys, "eval", run.run_id, "--out", out)
    assert code == 3 and f"'{lacking.name}' lacks scores that are asked for" in said, said


def test_one_run_folder_that_cannot_be_written_is_enough(results, words, capsys, monkeypatch):
    """A run of another user in a folder that several share."""
    out, run = results
    mount_read_only(run.path, monkeypatch)
    code, shown, said = call(capsys, *words, "--out", out)
    assert code == 0 and json.loads(shown)["run"] == run.run_id, said
    code, _, said = call(capsys, "eval", run.run_id, "--out", out, "--steps", "3")
    assert code == 3 and "Go on in a copy" in said


@pytest.fixture(scope="module")
def swept(tiny_pipe, tmp_path_factory):
    """A suite of two jobs that are done, and its results folder."""
    out = tmp_path_factory.mktemp("swept") / "results"
    suite = tiny_suite(out.parent, tiny_pipe, images="8")
    for cell in make_plan(read_suite(suite), out).jobs:
        run_job(resolve(cell.request), Runtime(out=out, device="cpu"))
    return suite, out


def test_a_sweep_that_is_done_is_shown_where_nothing_can_be_written(swept, capsys, monkeypatch):
    suite, out = swept
    mount_read_only(out, monkeypatch)
    code, shown, said = call(capsys, "sweep", suite, "--out", out)
    assert code == 0 and "2 of 2 jobs done, 0 failed, 0 left" in shown, said
    code, shown, _ = call(capsys, "sweep", suite, "--out", out, "--only-failed", "--json")
    assert code == 0 and [cell["state"] for cell in json.loads(shown)["cells"]] == ["done", "done"]
    code, _, said = call(capsys, "sweep", suite, "--out", out, "--force")
    assert code == 3 and f"'{out}' cannot be written: Read-only file system" in said


def test_a_sweep_that_is_not_done_is_refused_where_nothing_can_be_written(swept, tmp_path, capsys, monkeypatch):
    suite, made = swept
    out = Path(shutil.copytree(made, tmp_path / "results"))
    first = make_plan(read_suite(suite), out).jobs[0].run_id
    RunFolder(out / "runs" / first).set_status("failed", "no more")
    mount_read_only(out, monkeypatch)
    for more in ([], ["--only-failed"]):
        code, _, said = call(capsys, "sweep", suite, "--out", out, *more)
        assert code == 3 and f"'{out}' cannot be written: Read-only file system" in said


def test_a_study_is_refused_where_nothing_can_be_written(tiny_pipe, tmp_path, capsys, monkeypatch):
    out = tmp_path / "results"
    out.mkdir()
    mount_read_only(out, monkeypatch)
    words = ["study", "reward-prediction", "--size", "tiny", "--model", tiny_pipe, "--reward", "jpeg-incompressibility"]
    code, _, said = call(capsys, *words, "--results", out)
    assert code == 3 and "cannot be written: Read-only file system" in said
