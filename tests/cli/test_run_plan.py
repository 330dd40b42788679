"""``run --dry-run``: what comes first, cost and time of the whole run, missing weights, a GPU that is not here."""

import json

import pytest
from finished_run import call, words_of

from sdpo_bench.cli import run_plan
from sdpo_bench.cli.run_plan import parse_memory
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import Rates
from sdpo_bench.evaluation.base_scores import base_folder
from sdpo_bench.settings import Runtime


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """One second a forward call, three with a gradient, and all else free."""
    monkeypatch.setattr(run_plan, "_rates", lambda *_: Rates(1.0, 3.0, 0.0, 0.0))


def plan(capsys, *words):
    code, out, err = call(capsys, "run", "--dry-run", *words)
    assert (code, err) == (0, "")
    return out


def test_the_whole_run_is_counted_and_timed(capsys):
    data = json.loads(plan(capsys, "--budget", "images=640", "--json"))
    # Half of an epoch's images are the second members of pairs; ten epochs of 64 images.
    assert data["cost"]["images"] == 640 == 10 * data["cost_per_epoch"]["images"]
    forward, backward = (10 * data["cost_per_epoch"][f"denoiser_{way}"] for way in ("forward", "backward"))
    assert data["cost"]["denoiser_calls"] == forward + backward
    judged = data["cost"]["evaluation_denoiser_calls"]
    assert data["seconds"] == (forward - backward) + 3 * backward + 2 * judged, "the base model's scores are missing"


def test_the_cost_of_an_epoch_says_where_it_is_a_mean(capsys):
    flow, mean = ("--model", "emoji-flow", "--method", "grpo"), "one epoch costs (mean over the window's places)"
    assert mean in plan(capsys, *flow, "--set", "schedule.sde_steps=window:2:5")
    still = plan(capsys, *flow, "--set", "schedule.sde_steps=first:2")
    assert "one epoch costs" in still and mean not in still


@pytest.mark.parametrize(("method", "candidates"), [("sdpo", 1), ("best_of_n", 4)])
def test_a_base_model_that_has_scores_takes_no_time(capsys, tmp_path, method, candidates):
    words = ["--method", method, "--out", tmp_path, "--json"]
    words += ["--set", "method.n=4"] if candidates > 1 else []
    fresh = json.loads(plan(capsys, *words))
    config = resolve(Request(method=method)).config
    base = base_folder(config.model, config.eval, Runtime(out=tmp_path))
    base.path.mkdir(parents=True)
    base.evaluation.touch()
    judged = fresh["cost"]["evaluation_denoiser_calls"]
    assert (
        fresh["seconds"] - json.loads(plan(capsys, *words))["seconds"] == judged / candidates == fresh["base_seconds"]
    )


def test_a_budget_of_seconds_has_the_curve_and_candidates_of_its_epochs(capsys):
    """Ten epochs by images, and as many by the clock."""
    beside = ["--set", "eval.every=2", "--set", "checkpoint.choose=validation"]
    beside += ["--set", "checkpoint.prompts=emoji-validation", "--json"]
    whole, plain = (json.loads(plan(capsys, "--budget", "images=640", *more)) for more in (beside, ["--json"]))
    cost = plain["cost_per_epoch"]
    budget = f"seconds={10 * (cost['denoiser_forward'] + 2 * cost['denoiser_backward'])}"
    timed, bare = (json.loads(plan(capsys, "--budget", budget, *more)) for more in (beside, ["--json"]))
    assert timed["seconds"] - bare["seconds"] == whole["seconds"] - plain["seconds"] > 0


def test_several_seeds_cost_several_times_as_much(capsys):
    """They share one base model."""
    one = json.loads(plan(capsys, "--json"))
    each, base = one["seconds"] - one["base_seconds"], one["base_seconds"]
    text = plan(capsys, "--seeds", "0-4")
    assert f"each, {run_plan.duration(5 * each + base)} for 5 runs" in text and base > 0
    assert "one run for each of the seeds 0, 1, 2, 3, 4;" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--model", "emoji-turbo", "--preset", "paper-hpsv2"],
            "note: preset 'paper-hpsv2' is for model sd-turbo with reward hpsv2 or hpsv2.1; this run has model "
            "emoji-turbo with reward emoji-align. The preset that fits: --preset embedded\n",
        ),
        (["--model", "emoji-flow", "--preset", "embedded"], "--preset embedded-flow\n"),
        (["--model", "sd-turbo", "--reward", "emoji-align", "--preset", "paper-hpsv2"], "none of those here\n"),
        (["--model", "emoji-turbo", "--preset", "embedded"], ""),
        (["--model", "emoji-turbo"], ""),
        (["--model", "sd3.5-medium", "--reward", "emoji-align", "--preset", "mixgrpo"], ""),  # says no model
    ],
)
def test_a_preset_for_another_model_or_reward_is_named(capsys, monkeypatch, words, said):
    monkeypatch.setattr(run_plan, "expected_seconds", lambda *_: (None, 0.0, "it is not asked here"))
    code, _, err = call(capsys, "run", "--dry-run", *words)
    assert code == 0 and (err.endswith(said) if said else err == "")


def test_settings_that_are_not_defaults_come_first(capsys):
    text = plan(capsys, "--set", "update.lr=3e-3")
    own, usual = text.split("setting at its default")
    assert "update.lr" in own and "method.name" in own and "schedule.steps" in own  # 5 in the preset, 50 by default
    assert "update.betas" in usual and "update.betas" not in own


def test_missing_weights_of_model_and_rewards_are_one_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    text = plan(capsys, "--reward", "hpsv2", "--set", "eval.rewards=pickscore,imagereward")
    (line,) = [line for line in text.splitlines() if line.startswith("missing weights")]
    assert line.endswith("sdpo-bench fetch sd-turbo hpsv2 pickscore imagereward")
    assert "time: not known: the weights of sd-turbo, hpsv2, pickscore, imagereward are not here" in text


def test_nothing_is_missing_for_the_embedded_model(capsys):
    assert "missing weights" not in plan(capsys)


def test_a_gpu_that_is_not_here_can_be_planned_for(capsys):
    small = json.loads(plan(capsys, "--reward", "hpsv2", "--for-gpu", "8GB", "--json"))["memory"]
    large = json.loads(plan(capsys, "--reward", "hpsv2", "--for-gpu", "140GB", "--json"))["memory"]
    assert (small["free_bytes"], large["free_bytes"]) == (8e9, 140e9)
    assert "--micro-batch" in small["warning"] and "8.0 GB are there" in small["warning"]
    assert large["warning"] is None
    lines = plan(capsys, "--reward", "hpsv2", "--for-gpu", "140GB").splitlines()
    assert "fits a GPU of 140.0 GB" in lines and not any("free now" in line for line in lines)
    assert not any(
        line.startswith("fits") for line in plan(capsys, "--reward", "hpsv2", "--for-gpu", "8GB").splitlines()
    )


def test_sizes_of_memory():
    assert parse_memory("40GB") == 40e9
    assert parse_memory("24 GiB") == 24 * 2**30
    for text in ("40", "GB", "0GB", "-1GB", "40TB"):
        with pytest.raises(UsageError, match="Example: --for-gpu 40GB"):
            parse_memory(text)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--for-gpu", "40GB"], "give it with --dry-run"),
        (["--for-gpu", "40GB", "--dry-run", "--device", "cpu"], "without --device"),
        (["--seeds", "0-1", "--seed", "3", "--dry-run"], "contradict each other"),
        (["--seeds", "0-1", "--set", "seed=3", "--dry-run"], "contradict each other"),
        (["--seeds", "4-0", "--dry-run"], "expected different whole numbers"),
        (["--seeds", "0,1,0-2", "--dry-run"], "expected different whole numbers"),
        (["--seeds", "a", "--dry-run"], "expected different whole numbers"),
    ],
)
def test_options_that_do_not_go_together(capsys, words, said):
    code, _, err = call(capsys, "run", *words)
    assert code == 2 and said in err


def test_a_run_says_what_it_costs_before_it_starts_and_no_more_when_it_is_done(tiny_pipe, tmp_path, capsys):
    words = words_of(tmp_path, tiny_pipe, "jpeg-incompressibility", 12, **{"update.order": "accumulated"})
    words += ["--method", "ddpo", "--out", tmp_path / "out"]
    # Two steps of 12 images, each sampled, computed again for its update and differentiated: 72 calls. In each of three
    # epochs two steps of two groups for the KL to the base model: 12. Two updates an epoch.
    costs = "12 images, 84 denoiser calls, 12 reward calls, 6 optimiser steps; besides, 2 denoiser calls to judge it"
    code, _, err = call(capsys, *words)
    assert (code, f"the whole run costs {costs} (--dry-run estimates the time)\n" in err) == (0, True)
    assert err.index("the whole run costs") < err.index("evaluate")
    code, _, err = call(capsys, *words)
    assert (code, "the whole run costs" in err) == (0, False)
