"""A file that a user asks for takes the place of no device, pipe, folder or result; a link is followed."""

import os

import pytest
from report_factory import make_run

from forked import command, exit_code
from sdpo_bench.errors import UsageError
from sdpo_bench.system.output_paths import user_file


@pytest.fixture
def results(tmp_path):
    out = tmp_path / "results"
    make_run(out, "sdpo", 0)
    return out


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_link_is_followed(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there.csv")
    assert user_file(tmp_path / "link", tmp_path / "results") == tmp_path / "there.csv"


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "link.csv").symlink_to("/dev/null")
    for name in ("pipe.csv", "folder.csv", "link.csv"):
        with pytest.raises(UsageError, match=r"--to '.*' is there and is no regular file. Choose another"):
            user_file(tmp_path / name, tmp_path / "results", "--to")


@pytest.mark.parametrize("name", ["runs", "references", "suites", "studies", "replaced"])
def test_what_a_results_folder_keeps_is_not_written_over(tmp_path, name):
    with pytest.raises(UsageError, match=f"lies among the {name} of '.*', whose files are results"):
        user_file(tmp_path / "results" / name / "a.json", tmp_path / "results")
    assert user_file(tmp_path / "results" / "a.json", tmp_path / "results") == tmp_path / "results" / "a.json"


@pytest.mark.parametrize("style", ["csv", "html"])
def test_a_report_replaces_no_pipe_and_no_result(results, tmp_path, style):
    os.mkfifo(tmp_path / f"pipe.{style}")
    run = next(path for path in (results / "runs").iterdir() if path.name.startswith("sdpo"))
    (results / f"link.{style}").symlink_to(run / "run.json")
    before = content(results)
    for target in (tmp_path / f"pipe.{style}", run / f"new.{style}", results / f"link.{style}"):
        asked = ["report", "--results", str(results), "--format", style, "--out", str(target)]
        assert exit_code(lambda: command(asked), tmp_path / "said", tmp_path / "said") == 2  # noqa: B023
        assert f"--out '{target}'" in (tmp_path / "said").read_text()
    assert (tmp_path / f"pipe.{style}").is_fifo()
    assert content(results) == before


def test_a_report_of_all_formats_is_not_written_among_the_runs(results, tmp_path):
    before = content(results)
    asked = ["report", "--results", str(results), "--format", "all", "--out", str(results / "runs")]
    assert exit_code(lambda: command(asked), tmp_path / "said", tmp_path / "said") == 2
    assert "lies among the runs" in (tmp_path / "said").read_text()
    assert content(results) == before
