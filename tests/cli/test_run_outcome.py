"""What ``run`` says at its end: the folder is the last line for scripts, and the commands that it names work."""

import re
import shlex

from finished_run import call, words_of

from sdpo_bench.cli.commands.run import next_steps


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
