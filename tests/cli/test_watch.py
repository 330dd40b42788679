"""``sdpo-bench watch``: where runs stand, from their folders alone."""

import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from sdpo_bench.cli import watch_view
from sdpo_bench.cli.main import cli
from sdpo_bench.cli.watch_view import sparkline, standing, view_lines
from sdpo_bench.results.suite_records import write_record
from sdpo_bench.runs.run_folder import RunFolder

BUDGET = {"axis": "images", "amount": 640}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A run in training, one that was killed, one that failed, one that is done, and the base model's folder."""
    monkeypatch.setattr(RunFolder, "record", lambda self: {"config": {"budget": BUDGET}})
    for name, state, message in (
        ("live", "running", "training"),
        ("dead", "running", "training"),
        ("broken", "failed", "all pictures of epoch 3 are one colour"),
        ("ready", "done", ""),
        ("base-x", "done", ""),
    ):
        run = RunFolder(tmp_path / "runs" / name)
        run.create({})
        run.set_status(state, message)
        for epoch in range(1, 5):
            run.append("train.jsonl", {"epoch": epoch, "reward_mean": 0.1 * epoch, "bill": {"images": 64 * epoch}})
            run.append("timing.jsonl", {"epoch": epoch, "seconds": 10.0})
    live = RunFolder(tmp_path / "runs" / "live")
    live.append("warnings.jsonl", {"epoch": 2, "guard": "kl", "text": "far from the base model"})
    with live.locked():
        yield tmp_path


def test_a_view_of_a_results_folder(results):
    """Of 10 epochs 4 are done; the 6 left take 10 s each. A run whose process is gone does not count as running."""
    shown = CliRunner().invoke(cli, ["watch", str(results), "--once"], catch_exceptions=False)
    assert shown.exit_code == 0
    assert shown.output.splitlines()[1:] == [
        "running  live",
        "  training ━━━━━━━━────────────  40%  epoch 4 of 10  ETA 1:00",
        "  reward 0.4  ▁▃▆█",
        "  warning: epoch 2: far from the base model",
        "failed   broken",
        "  training ━━━━━━━━────────────  40%  epoch 4 of 10",
        "  reward 0.4  ▁▃▆█",
        "  all pictures of epoch 3 are one colour",
        "killed   dead",
        "  training ━━━━━━━━────────────  40%  epoch 4 of 10",
        "  reward 0.4  ▁▃▆█",
        "  its process died without an exit status; the same command resumes it",
    ]
    assert shown.output.splitlines()[0] == f"{results}: 1 running, 1 failed, 1 killed, 1 done"


def test_a_view_of_one_run(results):
    shown = CliRunner().invoke(cli, ["watch", "ready", "--results", str(results)], catch_exceptions=False)
    assert shown.output.splitlines()[:2] == [f"{results}: 1 done", "done     ready"]


def test_a_sweep_says_how_many_of_its_jobs_are_done(results):
    """Of three jobs known so far one is done, and two wait for the settings that the search will choose."""
    texts = {"description": "", "reproduces": "", "departs": ""}
    data = {"name": "mine", "texts": texts, "variant_keys": [], "search": None, "choices": [], "waiting": 2}
    write_record(results, "mine", {**data, "reported": {"ready": "", "not-begun": ""}, "tuning": ["live"]})
    shown = CliRunner().invoke(cli, ["watch", str(results), "--once"], catch_exceptions=False)
    assert shown.output.splitlines()[-1] == "suite mine: 1 of 5 jobs done"
    write_record(results, "mine", {**data, "waiting": 0, "reported": {"ready": ""}, "tuning": []})
    assert "suite" not in CliRunner().invoke(cli, ["watch", str(results), "--once"], catch_exceptions=False).output


def test_a_wrong_name_and_a_folder_without_runs(results, tmp_path):
    assert CliRunner().invoke(cli, ["watch", "nothing", "--results", str(results)]).exception is not None
    shown = CliRunner().invoke(cli, ["watch", "--results", str(tmp_path / "empty")])
    assert "is not a results folder" in str(shown.exception)


def test_it_ends_when_the_last_run_is_done(results, monkeypatch, capsys):
    """The run ends at the third look."""
    run, looks = RunFolder(results / "runs" / "live"), []

    def look():
        looks.append(standing(run))
        return [replace(looks[-1], state="running" if len(looks) < 3 else "done")]

    monkeypatch.setattr(watch_view, "REFRESH", 0.0)
    watch_view._show_live(look, "here")
    assert len(looks) == 3


def test_lines_are_cut_to_the_width(results):
    run = RunFolder(results / "runs" / "broken")
    run.set_status("failed", "x" * 300)
    lines = view_lines([standing(run)], "here", 79)
    assert max(map(len, lines)) == 79 and lines[-1].endswith("...")


def test_a_run_without_numbers_and_one_with_damaged_files(tmp_path):
    run = RunFolder(tmp_path / "runs" / "new")
    run.create({})
    assert standing(run).state == "new"
    (run.path / "status").write_text("{")
    (run.path / "train.jsonl").write_text(json.dumps({"epoch": 1, "bill": 3}) + "\n{\n")
    assert standing(run).state == "unknown" and standing(run).share == 0


def test_sparkline():
    assert sparkline([0, 7]) == "▁█"
    assert sparkline([1, 1, 1]) == "▁▁▁"
    assert sparkline([]) == "" and sparkline([float("nan")]) == ""
    assert sparkline([0, 2, 4, 6], width=2) == "▁█"
