"""What ``run`` says at its end: the folder is the last line for scripts, and the commands that it names work."""

import re
import shlex

import pytest
import torch
from finished_run import call, make, words_of

from sdpo_bench.cli.commands.run import next_steps


@pytest.fixture(scope="module")
def done(tmp_path_factory, tiny_pipe):
    """The words of a command that was done, with its results folder; tests leave its numbers alone."""
    folder = tmp_path_factory.mktemp("done")
    words = words_of(folder, tiny_pipe, "jpeg-incompressibility", 4)
    return [*words, "--out", make(words, folder / "out"), "--device", "cpu"]


def test_a_finished_run_says_that_it_has_no_curve(done, capsys):
    """The curve is measured during training, so the same run cannot get one later."""
    assert "curve" not in call(capsys, *done)[2]
    for more in ([], ["--json"], ["--seeds", "0"]):
        code, _, said = call(capsys, *done, "--set", "eval.every=1", *more)
        assert code == 0
        assert "eval.every=1 has no effect: this run was trained without a learning curve" in said, more


def test_eval_uses_the_threads_of_run(done, capsys, monkeypatch):
    """One for a denoiser below 5 M parameters, unless ``--threads`` says otherwise."""
    out = done[done.index("--out") + 1]
    (run,) = (out / "runs").glob("sdpo-*")
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    for words in (["run", *done[1:]], ["eval", run.name, "--out", out, "--device", "cpu"]):
        for more, threads in (([], 1), (["--threads", "3"], 3)):
            set_to.clear()
            assert call(capsys, *words, *more)[0] == 0
            assert set_to[-1:] == [threads], (words[0], more)


def test_a_first_run_names_commands_that_work(tmp_path, tiny_pipe, capsys):
    out = tmp_path / "my results"
    words = [*words_of(tmp_path, tiny_pipe, "jpeg-incompressibility", 4), "--out", out, "--device", "cpu"]
    code, shown, said = call(capsys, *words)
    assert code == 0
    (run,) = (out / "runs").glob("sdpo-*")
    assert shown.splitlines()[-1] == str(run)
    line = said.splitlines()[-1]
    assert line.startswith("next: sdpo-bench report ")
    commands = re.findall(r"sdpo-bench ([^(;]+) \(", line)
    assert [command.split()[0] for command in commands] == ["report", "compare"]
    for command in commands:
        assert call(capsys, *shlex.split(command))[0] == 0, command
    assert (out / "report.html").exists()
    assert "next: " not in call(capsys, *words)[2], "nothing was trained"


def test_the_default_folder_is_not_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--results" not in next_steps("sdpo", tmp_path / "results")
