"""A model's kind decides its sampler; settings that do not fit are refused from files and settings alone."""

import json
import shutil

import pytest

from sdpo_bench.cli.run_plan import plan
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import CannotTrain, UsageError
from sdpo_bench.models import pipeline_loading
from sdpo_bench.models.pipeline_files import PipelineFiles

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
PLAYGROUND = {"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "epsilon", "sigma_data": 0.5}


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    monkeypatch.setattr(pipeline_loading, "whole_pipeline", None)


@pytest.fixture
def folder(tiny_pipe, tmp_path):
    """A pipeline folder whose scheduler file and class are given."""

    def make(scheduler=EULER, pipeline=None):
        copy = tmp_path / "pipeline"
        shutil.copytree(tiny_pipe, copy, dirs_exist_ok=True)
        (copy / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        if pipeline:
            index = json.loads((copy / "model_index.json").read_text())
            (copy / "model_index.json").write_text(json.dumps(index | {"_class_name": pipeline}))
        return str(copy)

    return make


def run(model, method="sdpo", reward="jpeg-incompressibility", own=None, **overrides):
    settings = {f"method.{key}": value for key, value in (own or {}).items()}
    settings |= {f"{section}.{key}": value for section, table in overrides.items() for key, value in table.items()}
    return resolve(Request(method=method, model=model, reward=reward, overrides=settings))


def test_a_flow_model_chooses_its_sampler(folder):
    resolved = run(folder())
    schedule, evaluation = resolved.config.schedule, resolved.config.eval
    assert (schedule.sampler, schedule.sde, schedule.eta, schedule.steps) == ("flow", "cps", 0.7, 10)
    assert (evaluation.sampler, evaluation.eta, evaluation.spacing) == ("flow", 0.0, "trailing")
    assert resolved.sources["schedule.sampler"] == "the model's scheduler: flow matching"
    chosen = run(folder(), schedule={"eta": 0.3, "steps": 4, "sde": "flow"}, eval={"eta": 0.5}).config
    assert (chosen.schedule.eta, chosen.schedule.steps, chosen.eval.eta) == (0.3, 4, 0.5)


def test_stable_diffusion_3_leaves_the_sigmas_to_its_scheduler(folder):
    config = run(folder(pipeline="StableDiffusion3Pipeline")).config
    assert (config.schedule.spacing, config.eval.spacing) == ("linspace", "linspace")


def test_a_scheduler_that_is_stochastic_itself_is_evaluated_so(folder):
    config = run(folder(EULER | {"stochastic_sampling": True})).config
    assert (config.schedule.eta, config.eval.eta) == (1.0, 1.0)


def test_models_with_noise_levels_keep_their_sampler_and_their_identity(tiny_pipe, folder):
    """The settings of flow models are no part of the identity of the others, so that earlier ids stay."""
    plain = run("emoji-turbo", reward="emoji-align")
    assert plain.config.schedule.sampler == "ddim"
    assert not {"sde", "sde_steps", "cps_log_prob", "sigmas"} & set(plain.data["schedule"])
    assert "sigmas" not in plain.data["eval"]
    flow = run(folder())
    assert {"sde", "sde_steps", "cps_log_prob", "sigmas"} <= set(flow.data["schedule"])
    ids = {run(folder(), schedule={"sde_steps": rule}).run_id for rule in ("all", "first:2", "random:2", "window:2")}
    assert len(ids) == 4


@pytest.mark.parametrize(
    ("scheduler", "settings", "said"),
    [
        (EULER, {"schedule": {"sampler": "ddim"}}, "schedule.sampler = ddim needs noise levels"),
        (EULER, {"eval": {"sampler": "lcm"}}, "eval.sampler = lcm needs noise levels"),
        ({"_class_name": "DDIMScheduler"}, {"schedule": {"sampler": "flow"}}, "needs a flow-matching model"),
        ({"_class_name": "DDIMScheduler"}, {"eval": {"sampler": "flow"}}, "eval.sampler = flow needs a flow-matching"),
        ({"_class_name": "DDIMScheduler"}, {"schedule": {"sde": "flow"}}, "schedule.sde: only flow-matching models"),
        ({"_class_name": "DDIMScheduler"}, {"eval": {"sigmas": (1.0,), "steps": (1,)}}, "eval.sigmas: only flow"),
        (EULER | {"shift": 0}, {}, "shift is above 0"),
        (
            EULER | {"use_dynamic_shifting": True, "max_image_seq_len": 256},
            {},
            "max_image_seq_len = 256, and the shift",
        ),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, {}, "names UniPCMultistepScheduler"),
        ({"_class_name": "FlowMatchLCMScheduler"}, {}, "names FlowMatchLCMScheduler"),
        (PLAYGROUND, {}, r"is EDMDPMSolverMultistepScheduler, which scales latents, outputs and time by EDM's rule"),
        (EULER | {"shift_terminal": 0.1}, {"eval": {"steps": (1, 4)}}, "eval.steps has 1 step"),
        (EULER, {"schedule": {"sde": "ode"}}, "sdpo learns from log-probabilities, and schedule.sde = ode"),
        (EULER, {"schedule": {"eta": 0}}, "schedule.eta = 0 draws no noise"),
        (EULER, {"schedule": {"steps": 1}}, "one denoising step is the last one"),
        (EULER, {"schedule": {"sde_steps": "window:10"}}, "10 random steps do not fit into 10"),
        (EULER, {"schedule": {"sde_steps": "half"}}, "expected all, first:K"),
        (EULER, {"schedule": {"sde_steps": "random:3:2"}}, "do not fit into the first 2"),
        (EULER, {"schedule": {"sde_steps": "random:2:10"}}, "9 of schedule.steps = 10 can be random"),
        (EULER, {"schedule": {"eta": 1.2}}, "at most 1 under sde = cps"),
        (EULER, {"schedule": {"spacing": "leading"}}, "trailing and linspace"),
        (EULER, {"schedule": {"std_floor": 0.1}}, "no std_floor"),
        (EULER, {"schedule": {"sigmas": (1.0, 0.5)}}, "has 2 values, and the number of denoising steps is 10"),
        (EULER, {"schedule": {"steps": 2, "sigmas": (0.5, 1.0)}}, "must descend"),
        (EULER, {"schedule": {"sde": "dance", "cps_log_prob": "official"}}, "belongs to sde = cps"),
        (EULER, {"eval": {"sigmas": (1.0, 0.5, 0.2)}}, "eval.sigmas has 3 values"),
        (EULER, {"eval": {"eta": 1.5}}, "eval.eta = 1.5"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_before_anything_is_loaded(folder, scheduler, settings, said):
    with pytest.raises(UsageError, match=said) as raised:
        run(folder(scheduler), **settings)
    assert "\n" not in str(raised.value)


def test_the_refusal_names_methods_that_do_without_likelihood(folder):
    for settings in ({"sde": "ode"}, {"eta": 0}, {"steps": 1}, {"steps": 1, "sde_steps": "random:2:3"}):
        with pytest.raises(UsageError) as raised:
            run(folder(), schedule=settings)
        named = str(raised.value).split("needs none: ")[1].rstrip(".").split(", ")
        assert {"draft", "refl", "nft", "drpo"} <= set(named)
        assert not {"sdpo", "grpo", "best_of_n"} & set(named)


@pytest.mark.parametrize("settings", [{"sde": "ode"}, {"steps": 1}, {"eta": 0}])
def test_methods_without_log_probabilities_train_on_what_the_others_cannot(folder, settings):
    config = run(folder(), method="refl", reward="emoji-align", schedule=settings).config
    assert config.schedule.sampler == "flow"


def test_a_window_at_one_step_is_refused_by_every_method(folder):
    """No step is random there, whatever learns from the image."""
    with pytest.raises(UsageError, match="1 denoising steps, .*Use --set schedule.sde_steps=all"):
        run(folder(), method="refl", reward="emoji-align", schedule={"steps": 1, "sde_steps": "first:1"})


def test_settings_without_effect_on_the_ode_are_refused(folder):
    for settings in ({"eta": 0.5}, {"sde_steps": "first:2"}):
        with pytest.raises(UsageError, match="would have no effect: schedule.sde = ode"):
            run(folder(), method="refl", reward="emoji-align", schedule={"sde": "ode"} | settings)


@pytest.mark.parametrize("files", [None, PipelineFiles({"scheduler": EULER | {"use_dynamic_shifting": True}}, {})])
def test_a_plan_needs_neither_the_files_nor_the_size_of_the_image(folder, monkeypatch, files):
    """The number of image tokens comes with the loaded model, and the files of a hub model may not be here."""
    monkeypatch.setattr("sdpo_bench.cli.run_plan.pipeline_files", lambda settings: files)
    planned = plan(run(folder(), schedule={"steps": 4, "sde_steps": "first:2"}))
    groups = planned["cost_per_epoch"]["groups"]
    assert planned["cost_per_epoch"]["denoiser_backward"] == groups * (1 + 2)  # pairs share their first state


DRAWN, UNSEEN = (
    "ddpo",
    "the noise of one denoising step does not reach the scored picture, that step's predicted original",
)


@pytest.mark.parametrize("method", ["sdpo", "sdpo_sparse", "sdpo_full", "sdpo_accumulated"])
def test_one_step_whose_draw_is_not_scored_is_refused_where_likelihoods_are_learnt(method):
    """DDIM draws the sample from the predicted original, which is made before: a reward of that says nothing of it."""
    with pytest.raises(CannotTrain) as raised:
        run("emoji-turbo", method, "emoji-align", schedule={"steps": 1})
    assert raised.value.reason == UNSEEN
    said = str(raised.value)
    assert said.startswith(f"{method} learns from log-probabilities, and with schedule.steps = 1 the noise of one")
    assert "Use --set schedule.steps=2 or more, a method that scores the sample (d3po, ddpo," in said
    assert "\n" not in said and "best_of_n" not in said
    named = said.split("needs no log-probabilities: ")[1].rstrip(".").split(", ")
    assert {"draft", "refl", "nft", "awm", "dgpo", "drpo"} == set(named)
    run("emoji-turbo", method, "emoji-align", schedule={"steps": 2})


@pytest.mark.parametrize("reward", ["predicted", "full"])
def test_a_reward_of_each_step_makes_the_predicted_original_the_final_picture(reward):
    with pytest.raises(CannotTrain, match=r"Use --set schedule.steps=2 or more, --set method.reward=sparse") as raised:
        run("emoji-turbo", DRAWN, "emoji-align", schedule={"steps": 1}, own={"reward": reward})
    assert raised.value.reason == UNSEEN
    run("emoji-turbo", DRAWN, "emoji-align", schedule={"steps": 2}, own={"reward": reward})


@pytest.mark.parametrize("method", [DRAWN, "grpo", "d3po", "nft", "awm", "dgpo", "drpo", "refl"])
def test_methods_that_score_the_draw_or_need_no_likelihood_train_one_step(method):
    assert run("emoji-turbo", method, "emoji-align", schedule={"steps": 1}).config.schedule.steps == 1


def test_one_step_is_refused_before_the_sampler_s_own_error(folder):
    """A consistency model's only step may be made random by a floor, which does not help here."""
    lcm = {"sampler": "lcm", "steps": 1, "std_floor": 0.01}
    with pytest.raises(CannotTrain, match="schedule.steps = 1"):
        run("emoji-turbo", "sdpo", "emoji-align", schedule=lcm)
