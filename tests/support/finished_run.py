"""A run that is made once and copied for every test that harms it."""

import shutil
from pathlib import Path

import pytest

from sdpo_bench.cli.entry import main
from sdpo_bench.runs.run_folder import RunFolder


def call(capsys, *arguments):
    """Exit code, standard output and standard error of a command in this process."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in arguments])
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


def words_of(folder, tiny_pipe, reward, images, **settings):
    """A ``run`` of few images of two prompts, without its results folder."""
    prompts = folder / "two.txt"
    prompts.write_text("cat\ndog\n")
    settings = {
        "schedule.steps": 2,
        "sample.images_per_epoch": 4,
        "update.minibatch": 2,
        "update.accumulation": 1,
        "sample.prompts": prompts,
        "eval.train": prompts,
        "eval.steps": 1,
        "eval.images_per_prompt": 1,
        **settings,
    }
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["run", "--model", str(tiny_pipe), "--reward", reward, "--budget", f"images={images}", *sets]


def make(words, out):
    """Its results folder."""
    with pytest.raises(SystemExit) as stop:
        main([*words, "--out", str(out)])
    assert stop.value.code == 0
    return out


def copy_of(made, folder):
    """A copy of a results folder, and its only run."""
    out = Path(shutil.copytree(made, folder))
    (run,) = (path for path in (out / "runs").iterdir() if not path.name.startswith("base-"))
    return out, RunFolder(run)
