"""Every method that trains, on every family of transformers: trained, evaluated, exported, loaded by stock diffusers.

Each case goes the public way: ``run_job`` trains one epoch and evaluates it at two step counts, the ``export`` command
writes the adapter, and the Python code that it prints is run as it stands. The pictures of that stock pipeline, from
the noise of the evaluation, must be those of the run's own policy and those that the evaluation has measured. The own
policy has the weights of the last checkpoint at the strength of the settings, so no exported file is on its side.

Pictures are in [0, 1]. Both sides do the same float32 operations in other shapes and orders, and differ by up to 1e-6;
the tolerance of 1e-5 leaves room for other processors. Training changes the pictures by 1e-2 or more.

The base pipeline of a family is read once and copied; every case reads the stock pipeline, since that is what the
printed code does. By default every method is compared on one family and every kind of adapter on all of them; the other
pairs, most of 90 seconds, are marked ``exhaustive``: ``pytest -m exhaustive``.
"""

from textwrap import dedent
from typing import Any

import pytest
from policies import fresh_policy
from safetensors.torch import load_file
from stock_pipelines import call

from factories import GRADIENT_METHODS, LIKELIHOOD_FREE, TRAINED, make_resolved, make_trainer
from sdpo_bench.cli.commands.export import export_command
from sdpo_bench.errors import CannotTrain, UsageError
from sdpo_bench.evaluation.evaluate import evaluation_schedule, sample_images
from sdpo_bench.evaluation.score_rows import read_rows
from sdpo_bench.rollout.sampling import Noise
from sdpo_bench.running import finished_run, run_one
from sdpo_bench.running.finished_run import open_finished_run
from sdpo_bench.scoring.image_statistics import STATISTICS, statistics
from sdpo_bench.settings import Runtime
from sdpo_bench.training import checkpoint
from tools.random_pipeline import SMALL_FLOW

pytestmark = pytest.mark.slow

SHAPES = sorted(SMALL_FLOW)
PROMPTS = ("a cat", "the other dog")
PAIRS = [(prompt, 0) for prompt in PROMPTS]
SIDE = 16
STEPS = (1, 2)
TOKENS = 32
AVERAGE = {"ema.decay": 0.5, "update.inner_epochs": 2}
GUIDED = {"model.guidance_scale": 3.0, "eval.guidance_scale": 3.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{method: (method, {}) for method in TRAINED},
    "sdpo, guided": ("sdpo", GUIDED),
    "sdpo, average": ("sdpo", AVERAGE),
    "nft, old policy and average": ("nft", AVERAGE),
    "dgpo, old policy": ("dgpo", {"method.clip_range": 0.1, "update.inner_epochs": 2}),
}
"""Every method as it is, and settings that add a second branch or a second adapter."""
EVERYWHERE = ("sdpo", "grpo", "nft", "sdpo, average")
PAIRS_OF_BOTH = [
    pytest.param(shape, case, marks=() if case in EVERYWHERE or i % len(SHAPES) == j else pytest.mark.exhaustive)
    for i, case in enumerate(CASES)
    for j, shape in enumerate(SHAPES)
]
WITHOUT_LOG_PROBS = LIKELIHOOD_FREE + GRADIENT_METHODS


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """One results folder, so that a family's base model is scored once."""
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def settings(out):
    prompts = out / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    return {
        "model.resolution": SIDE,
        "model.text_tokens": TOKENS,
        "sample.prompts": str(prompts),
        "eval.train": str(prompts),
        "eval.validation": "",
        "eval.unseen": "",
        "eval.steps": ",".join(map(str, STEPS)),
        "budget.images": 8,
        "update.lr": 0.05,
    }


@pytest.fixture(autouse=True)
def copied_policies(monkeypatch):
    """A family's base pipeline is read once; each policy is a copy with an adapter of its own."""
    for module in (run_one, finished_run):
        monkeypatch.setattr(module, "load_policy", lambda model, device, lora_seed: fresh_policy(model, lora_seed))


def own_pictures(policy, evaluation):
    """Pictures ``[n, 3, H, W]`` of the evaluation by step count."""
    return {k: sample_images(policy, evaluation_schedule(policy, evaluation, k), evaluation, PAIRS) for k in STEPS}


def printed_code(run, target, capsys):
    """The Python code that ``export`` prints."""
    capsys.readouterr()
    export_command(run.run_id, target, False, run.path.parent.parent)
    printed = capsys.readouterr().out
    return dedent(printed.split("In Python:\n")[1].rsplit("\n", 2)[0])


def stock_pictures(code, shape, policy, evaluation):
    """The same pictures of the pipeline that the code makes."""
    names: dict[str, Any] = {}
    exec(code, names)
    pipeline = names["pipeline"]
    pipeline.set_progress_bar_config(disable=True)
    noise = Noise(("evaluation", evaluation.noise_bank))
    start = noise.initial(policy.latent_shape, [f"{text}\n{i}" for text, i in PAIRS], 1, shared=False)[:, 0]
    scale = evaluation.guidance_scale
    shared = {"side": SIDE, "output": "pt", "max_sequence_length": TOKENS}
    return {k: call(pipeline, shape, start, PROMPTS, scale, steps=k, **shared) for k in STEPS}


def delivered_weights(run, average):
    """Adapter weights that the training ended with, from its checkpoint: the average where there is one."""
    path, _ = checkpoint.latest(run)
    kept = load_file(path)
    learnt, averaged, old = (
        {name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)}
        for prefix in ("lora/", "ema/", "old/")
    )
    assert bool(averaged) == average
    for other in (learnt, old) if averaged else ():
        assert not other or max((value - averaged[name]).abs().max() for name, value in other.items()) > 1e-2
    return averaged or learnt


@pytest.mark.parametrize(("shape", "case"), PAIRS_OF_BOTH)
def test_stock_diffusers_draws_the_pictures_of_the_run(folders, shape, case, settings, out, tmp_path, capsys):
    method, changes = CASES[case]
    outcome = run_one.run_job(make_resolved(folders(shape), method, **(settings | changes)), Runtime(out, "cpu"))
    assert {row["steps"] for row in outcome.table} == set(STEPS)
    finished = open_finished_run(outcome.run)
    policy, evaluation = finished.load_policy("cpu"), finished.evaluation
    policy.set_guidance(evaluation.guidance_scale)
    with policy.using(delivered_weights(outcome.run, "ema.decay" in changes)):
        own = own_pictures(policy, evaluation)
    with policy.reference():
        base = own_pictures(policy, evaluation)
    theirs = stock_pictures(printed_code(outcome.run, tmp_path, capsys), shape, policy, evaluation)
    rows = read_rows(outcome.run)
    for k in STEPS:
        assert (own[k] - base[k]).abs().max() > 1e-3, "training has changed the adapter"
        assert (own[k] - theirs[k]).abs().max() < 1e-5
        measured = rows[rows.steps == k].drop_duplicates("prompt").set_index("prompt").loc[list(PROMPTS)]
        for name in STATISTICS:
            assert measured[name].tolist() == pytest.approx(statistics(theirs[k])[name].tolist(), abs=1e-5), name


NO_NOISE = {
    "one denoising step is the last one, which is never random": {"schedule.steps": 1},
    "schedule.sde = ode draws no noise": {"schedule.sde": "ode"},
    "schedule.eta = 0 draws no noise": {"schedule.eta": 0.0},
}
"""Why a flow model's schedule has no log-probabilities, and the settings that make it so."""


@pytest.mark.parametrize("reason", NO_NOISE)
@pytest.mark.parametrize("shape", SHAPES)
def test_methods_that_need_log_probabilities_are_refused_where_there_are_none(folders, shape, reason, settings):
    for method in TRAINED:
        if method in WITHOUT_LOG_PROBS:
            make_resolved(folders(shape), method, **(settings | NO_NOISE[reason]))
            continue
        with pytest.raises(CannotTrain) as refused:
            make_resolved(folders(shape), method, **(settings | NO_NOISE[reason]))
        assert str(refused.value).startswith(f"{method} learns from log-probabilities, and {reason}. Use --set ")
        assert str(refused.value).endswith(f"a method that needs none: {', '.join(sorted(WITHOUT_LOG_PROBS))}.")


@pytest.mark.parametrize("method", WITHOUT_LOG_PROBS)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_other_methods_train_a_single_step(folders, shape, method, settings, tmp_path):
    trainer = make_trainer(make_resolved(folders(shape), method, **(settings | {"schedule.steps": 1})), tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.policy.lora_parameters().items()}
    trainer.train()
    assert any((p - before[name]).abs().max() > 1e-3 for name, p in trainer.policy.lora_parameters().items())


@pytest.mark.parametrize("sampler", ["ddim", "lcm"])
@pytest.mark.parametrize("method", TRAINED)
def test_samplers_of_noise_levels_are_refused_for_every_method(folders, method, sampler, settings):
    for shape in SHAPES:
        with pytest.raises(UsageError, match=r"this is a flow-matching model .* Use --set schedule.sampler=flow"):
            make_resolved(folders(shape), method, **(settings | {"schedule.sampler": sampler}))
