"""``run --seeds``: one run after the other, one summary, and a run that fails stops none of the others."""

import json
import re
import shlex
from types import SimpleNamespace

import pytest
from finished_run import call, words_of

from sdpo_bench.cli.commands import run as run_command
from sdpo_bench.cli.options import parse_seeds
from sdpo_bench.errors import RunFailed


@pytest.fixture
def words(tmp_path, tiny_pipe):
    return [*words_of(tmp_path, tiny_pipe, "jpeg-incompressibility", 4), "--out", tmp_path / "out"]


def test_lists_and_ranges_of_seeds():
    assert parse_seeds("0-4") == (0, 1, 2, 3, 4)
    assert parse_seeds("0, 2,5-6") == (0, 2, 5, 6)


def test_each_seed_is_the_run_that_it_is_alone(words, capsys, tmp_path):
    code, out, err = call(capsys, *words, "--seeds", "0,2", "--json")
    assert code == 0 and "run 2 of 2, seed 2" in err
    data = json.loads(out)
    assert [run["seed"] for run in data["runs"]] == [0, 2]
    gains = [run["gain"] for run in data["runs"]]
    assert data["mean_gain"] == pytest.approx(sum(gains) / 2)
    assert data["standard_deviation"] == pytest.approx(abs(gains[0] - gains[1]) / 2**0.5)
    assert data["bill"]["images"] == 8
    code, out, _ = call(capsys, *words, "--seed", "2")
    assert code == 0 and "The training of this run was done before; nothing was trained" in out
    assert out.splitlines()[-1].endswith(data["runs"][1]["run"])


def test_the_summary_names_its_prompts_and_whose_cost_it_has(words, capsys, tmp_path):
    """Gains are of training prompts although unseen ones are scored too; 8 images are those of both runs."""
    unseen = tmp_path / "unseen.txt"
    unseen.write_text("a fox\n")
    code, out, _ = call(capsys, *words, "--seeds", "0,2", "--set", f"eval.unseen={unseen}")
    assert code == 0 and "sdpo on jpeg-incompressibility, train prompts, mean over step counts" in out
    assert "\n2 runs together, cost: 8 images; " in out


def test_a_failed_seed_is_reported_after_the_others(words, capsys, monkeypatch):
    real = run_command.run_with_progress

    def run_with_progress(resolved, *arguments):
        if resolved.config.seed == 0:
            raise RunFailed("all pictures are black")
        return real(resolved, *arguments)

    monkeypatch.setattr(run_command, "run_with_progress", run_with_progress)
    code, out, err = call(capsys, *words, "--seeds", "0-1")
    assert code == 1
    assert "seed 0 failed: all pictures are black" in err and "1 of 2 runs failed: seed 0" in err
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [(row[0], row[2]) for row in rows] == [("0", "failed"), ("1", "done")]
    (command,) = re.findall("^interval and verdict: sdpo-bench (.*)$", out, re.MULTILINE)
    code, out, _ = call(capsys, *shlex.split(command))
    assert code == 0 and "\nsdpo - base model" in out, "the command reads the same results folder"


def test_a_gain_is_that_of_the_trained_version_alone():
    """A held-out reward can be another version of the trained one, e.g. of a service."""
    rows = [("train", "1", 1.0), ("train", "1", 3.0), ("train", "2", 50.0), ("unseen", "1", 7.0)]
    table = [{"split": s, "reward": "ocr", "version": v, "difference": d} for s, v, d in rows]
    assert run_command.gain_of(SimpleNamespace(table=table), "ocr/1") == 2.0
    assert run_command.gain_of(SimpleNamespace(table=table), "ocr/3") is None
