"""Every pitfall that others fell into has a check, and the checks that no other test file has are here."""

import re
from dataclasses import replace

import click
import pytest
import torch
from places import HERE

from factories import make_resolved
from sdpo_bench.advantages.epoch_metrics import reward_metrics
from sdpo_bench.cli.entry import main
from sdpo_bench.cli.main import cli
from sdpo_bench.config.presets import shipped_presets
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.evaluation import evaluate as ev
from sdpo_bench.rollout.sampling import Noise
from sdpo_bench.settings import EvaluationSettings

PAGE = (HERE.parent / "docs" / "pitfalls.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("|")][2:]


def test_every_row_names_checks_that_exist():
    assert len(ROWS) == 42
    tests = {f"{path.parent.name}/{path.name}": path.read_text() for path in HERE.rglob("test_*.py")}
    checks = "\n".join(path.read_text() for path in (HERE.parent / "sdpo_bench" / "doctor").glob("*.py"))
    for row in ROWS:
        named = re.findall(r"`(\w+/test_\w+\.py)::(test_\w+)`", row)
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
    text = "\n".join(path.read_text() for path in HERE.rglob("*.py"))
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
    assert sampler_id(plain) == sampler_id(other) == "ddim trailing eta=1 guidance=1 sample bank=0"
    ours, theirs = (ev.evaluation_schedule(tiny_policy, settings, 4) for settings in (plain, other))
    assert torch.equal(ours.timesteps, theirs.timesteps) and torch.equal(ours.std(), theirs.std())


def test_the_evaluation_has_settings_of_its_own(tiny_policy):
    """They reach its schedule, and are part of what is printed beside the scores."""
    plain = EvaluationSettings()
    quiet, leading = replace(plain, eta=0.5), replace(plain, spacing="leading")
    schedules = [ev.evaluation_schedule(tiny_policy, settings, 4) for settings in (plain, quiet, leading)]
    assert torch.allclose(schedules[1].std(), schedules[0].std() / 2)
    assert not torch.equal(schedules[2].timesteps, schedules[0].timesteps)
    lcm = ev.evaluation_schedule(tiny_policy, replace(plain, sampler="lcm"), 4)
    assert (schedules[0].sampler, lcm.sampler) == ("ddim", "lcm")
    changes = {
        "eta": 0.5,
        "spacing": "leading",
        "sampler": "lcm",
        "guidance_scale": 2.0,
        "image": "predicted",
        "noise_bank": 1,
    }
    texts = {sampler_id(plain), *(sampler_id(replace(plain, **{k: v})) for k, v in changes.items())}
    assert len(texts) == 1 + len(changes)


@pytest.mark.parametrize("preset", ["", *sorted(shipped_presets())])
def test_several_step_counts_are_scored_by_default(preset):
    """Fewer and more than those of the training, or those of the paper, down to a single one."""
    chosen = shipped_presets().get(preset)
    model = chosen.match.get("model", chosen.common.get("model.name")) if chosen else "emoji-turbo"
    model = model[0] if isinstance(model, list) else model
    config = resolve(Request(model=model, preset=preset or None)).config
    steps = config.eval.steps
    assert len(steps) >= 5 and min(steps) == 1 and set(steps) - {config.schedule.steps}


@pytest.mark.parametrize("steps", [1, 3])
def test_a_k_step_score_is_a_k_step_run(tiny_policy, steps):
    """The denoiser is called at each of the k timesteps of a k-step schedule, and no other; the image is where a walk
    from pure noise through all of them ends."""
    seen = []
    predict = tiny_policy.predict
    tiny_policy.predict = lambda x, t, c: (seen.append(t.unique().tolist()), predict(x, t, c))[1]
    settings = EvaluationSettings(steps=(steps,))
    schedule = ev.evaluation_schedule(tiny_policy, settings, steps)
    images = ev.sample_images(tiny_policy, schedule, settings, [("cat", 0), ("dog", 0)])
    assert seen == [[t] for t in schedule.timesteps.tolist()]
    assert len(seen) == steps and seen[0] == [999]
    noise, names, shape = Noise(("evaluation", 0)), ["cat\n0", "dog\n0"], tiny_policy.latent_shape
    state, drawn = noise.initial(shape, names, 1, False)[:, 0], noise.steps(shape, names, 1, steps)[:, 0]
    texts = tiny_policy.encode(["cat", "dog"])
    for i, time in enumerate(schedule.timesteps):
        step = schedule.denoise(predict(state, time.expand(2), texts), state, torch.tensor([i, i]))
        state = step.mean + step.std * drawn[:, i]
    assert torch.allclose(images, tiny_policy.decode(state), atol=1e-4)
    assert not torch.allclose(images, tiny_policy.decode(step.x0), atol=1e-3)


def test_means_are_means():
    """Two groups of two, final rewards 1, 2, 3 and 10: mean 4, the maximum is somewhere else."""
    rewards = torch.tensor([[[0.0, 1.0], [0.0, 2.0]], [[0.0, 3.0], [0.0, 10.0]]])
    found = reward_metrics(rewards, rewards, "full")
    assert found["reward_mean"] == 4.0
    assert found["reward_std"] == pytest.approx(12.5**0.5)
    assert found["reward_by_query"]["query_1"]["mean"] == 4.0
    assert (found["dense_reward_min"], found["dense_reward_max"]) == (0.0, 10.0)
