"""Every pitfall that others fell into has a check, and the checks that no other test file has are here."""

import re

import click
import pytest
import torch
from conftest import HERE

from factories import make_resolved
from sdpo_bench import evaluate as ev
from sdpo_bench.cli import cli, main
from sdpo_bench.epoch_metrics import reward_metrics
from sdpo_bench.settings import EvaluationSettings

PAGE = (HERE.parent / "docs" / "pitfalls.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("|")][2:]


def test_every_row_names_checks_that_exist():
    assert len(ROWS) == 26
    tests = {path.name: path.read_text() for path in HERE.glob("test_*.py")}
    checks = "\n".join(path.read_text() for path in (HERE.parent / "sdpo_bench").glob("conformance*.py"))
    for row in ROWS:
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        doctor = re.findall(r"doctor `(\w+)`", row)
        assert named or doctor, row
        for file, name in named:
            assert re.search(rf"^(    )?def {name}\(", tests[file], re.MULTILINE), f"{file}::{name}"
        for name in doctor:
            assert f"def {name}(" in checks, name


def commands(group: click.Group, path: str = ""):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}".strip(), command


def test_every_flag_is_used_by_a_test():
    """On a command line, or as an argument of what the command does."""
    text = "\n".join(path.read_text() for path in HERE.glob("*.py"))
    unused = {
        f"{name} {option}"
        for name, command in commands(cli)
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in [max(parameter.opts, key=len)]
        if not re.search(rf"{option}\b|\b{parameter.name}=|\"{parameter.name}\"", text)
    }
    assert not unused


def test_options_of_another_executor_are_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", "smoke", "--cpus-per-cell", "2"])
    assert stop.value.code == 2
    assert "belong to --executor ray" in capsys.readouterr().err


def test_the_training_schedule_does_not_reach_the_evaluation(tiny_pipe, tiny_policy):
    """Not its eta, its spacing, its family, its floor nor its number of steps."""
    plain = make_resolved(tiny_pipe).config.eval
    changed = {"schedule.eta": 0.3, "schedule.spacing": "leading", "schedule.steps": 7, "schedule.std_floor": 0.1}
    other = make_resolved(tiny_pipe, **changed).config.eval
    assert ev.sampler_id(plain) == ev.sampler_id(other) == "ddim trailing eta=1 guidance=1 sample bank=0"
    ours, theirs = (ev.evaluation_schedule(tiny_policy, settings, 4) for settings in (plain, other))
    assert torch.equal(ours.timesteps, theirs.timesteps)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_k_step_score_is_a_k_step_run(tiny_policy, steps):
    """The denoiser is called at each of the k timesteps of a k-step schedule, from pure noise, and no other."""
    seen = []
    predict = tiny_policy.predict
    tiny_policy.predict = lambda x, t, c: (seen.append(t.unique().tolist()), predict(x, t, c))[1]
    settings = EvaluationSettings(steps=(steps,))
    schedule = ev.evaluation_schedule(tiny_policy, settings, steps)
    ev.sample_images(tiny_policy, schedule, settings, [("cat", 0), ("dog", 0)])
    assert seen == [[t] for t in schedule.timesteps.tolist()]
    assert len(seen) == steps and seen[0] == [999]


def test_means_are_means():
    """Two groups of two, final rewards 1, 2, 3 and 10: mean 4, the maximum is somewhere else."""
    rewards = torch.tensor([[[0.0, 1.0], [0.0, 2.0]], [[0.0, 3.0], [0.0, 10.0]]])
    found = reward_metrics(rewards, rewards, "full")
    assert found["reward_mean"] == 4.0
    assert found["reward_std"] == pytest.approx(12.5**0.5)
    assert found["reward_by_query"]["query_1"]["mean"] == 4.0
    assert (found["dense_reward_min"], found["dense_reward_max"]) == (0.0, 10.0)
