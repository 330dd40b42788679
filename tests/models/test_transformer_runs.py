"""Runs on small transformer pipelines: what an epoch changes and costs, and settings of the known models."""

import json
import math
import shutil
from dataclasses import asdict

import diffusers
import numpy as np
import pytest
import torch

from factories import make_method, make_resolved, make_trainer
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.config.training_schedule import trained_weights, training_schedule
from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import trained_steps
from sdpo_bench.models.base_model import load_policy, pipeline_files, scheduler_config
from sdpo_bench.models.families import FAMILIES
from sdpo_bench.models.known_models import KNOWN
from sdpo_bench.rollout.group_cost import group_cost
from sdpo_bench.rollout.trailing_weights import average_keep
from sdpo_bench.settings import ModelSettings
from tools.random_pipeline import SMALL_FLOW


def small_run(folder, method="sdpo", **overrides):
    return make_resolved(folder, method, **({"model.resolution": 16, "budget.images": 8} | overrides))


def test_a_folder_of_a_family_gets_its_sampler_and_its_adapter(folders):
    chosen = resolve(Request(model=str(folders("sd3")), reward="jpeg-compressibility"))
    assert (chosen.config.schedule.sampler, chosen.config.eval.sampler) == ("flow", "flow")
    assert "attn.add_k_proj" in chosen.config.model.lora_targets
    assert chosen.sources["model.lora_targets"] == "the folder's family: Stable Diffusion 3"
    own = {"model.lora_targets": "to_q"}
    chosen = resolve(Request(model=str(folders("sd3")), reward="jpeg-compressibility", overrides=own))
    assert chosen.config.model.lora_targets == ("to_q",)


OTHERS = ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]


@pytest.mark.parametrize("scheduler", OTHERS)
@pytest.mark.parametrize("shape", sorted(SMALL_FLOW))
def test_a_flow_family_with_another_scheduler_is_refused_by_its_files(folders, tmp_path, shape, scheduler):
    """Under DDIM its velocity would be read as predicted noise, and training would go on with wrong numbers."""
    folder = tmp_path / "pipeline"
    shutil.copytree(folders(shape), folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": scheduler}))
    with pytest.raises(UsageError) as raised:
        resolve(Request(model=str(folder), reward="jpeg-compressibility"))
    said = str(raised.value)
    assert f"scheduler {scheduler}; expected FlowMatchEulerDiscreteScheduler" in said
    assert SMALL_FLOW[shape]["transformer"]["_class_name"] in said and "Put the scheduler folder" in said
    assert "\n" not in said


@pytest.mark.parametrize("scheduler", OTHERS)
def test_a_loaded_flow_model_with_another_scheduler_is_refused(folders, scheduler):
    """The files of a hub model may not be here when settings are checked."""
    policy = load_policy(ModelSettings(name=str(folders("sd3")), resolution=16))
    assert scheduler_config(policy)["shift"] == 3.0
    policy.pipeline.scheduler = getattr(diffusers, scheduler)()
    with pytest.raises(UsageError, match=f"scheduler {scheduler}; expected FlowMatchEulerDiscreteScheduler"):
        scheduler_config(policy)


@pytest.mark.parametrize("method", ["sdpo", "grpo"])
@pytest.mark.parametrize("shape", sorted(SMALL_FLOW))
def test_an_epoch_changes_the_adapter_alone_and_costs_what_was_predicted(folders, tmp_path, shape, method):
    resolved = small_run(folders(shape), method)
    trainer = make_trainer(resolved, tmp_path)
    frozen = {n: p.detach().clone() for n, p in trainer.policy.denoiser.named_parameters() if "lora_" not in n}
    before = {n: p.detach().clone() for n, p in trainer.policy.lora_parameters().items()}
    trainer.train()
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.policy.denoiser.named_parameters() if n in frozen)
    assert any(not torch.equal(p, before[n]) for n, p in trainer.policy.lora_parameters().items())
    (row,) = trainer.run.log()
    assert row["ratio_at_zero_update"] < 1e-5
    cost = group_cost(trainer.method, [1.0, 1.0, 0.0], inner_epochs=1, guided=False)  # the last step draws nothing
    assert row["bill"]["backward"] == 8 // trainer.method.members * cost.backward


@pytest.mark.parametrize("name", ["sd3.5-large-turbo", "sd3.5-medium", "flux.1-schnell", "z-image-turbo"])
def test_known_transformers_resolve_to_their_own_settings(name):
    chosen = resolve(Request(model=name, reward="jpeg-compressibility")).config
    assert chosen.schedule.sampler == chosen.eval.sampler == "flow"
    assert chosen.schedule.steps == {"sd3.5-medium": 10, "z-image-turbo": 8}.get(name, 4)
    assert chosen.schedule.spacing == chosen.eval.spacing == ("linspace" if name.startswith("sd3") else "trailing")
    assert chosen.model.guidance_scale == (4.5 if name == "sd3.5-medium" else 1.0)
    assert chosen.model.lora_targets in {family.lora_targets for family in FAMILIES}


FLOW_MODELS = ["emoji-flow", "emoji-flow-base", "sd3.5-large-turbo", "sd3.5-medium", "flux.1-schnell", "z-image-turbo"]


def default_gains(name, **overrides):
    """Gains of the random steps of a known model, times the weights of its default run's loss."""
    config = resolve(Request(method="grpo", model=name, overrides=overrides)).config
    files = pipeline_files(config.model)
    family = files.family(name)
    side = family.latent_side(files.configs, config.model.resolution)
    scheduler = files.configs["scheduler"] | {"image_seq_len": family.image_tokens(files.configs, side)}
    method = make_method("grpo", **config.method.settings)
    schedule = training_schedule(config, scheduler, method)
    gains = schedule.gains() * trained_weights(schedule, method, config.update.step_weight)
    return gains[schedule.random]


def test_the_flow_models_are_all_that_are_known():
    names = [name for name in KNOWN if resolve(Request(model=name)).config.schedule.sampler == "flow"]
    assert names == FLOW_MODELS


@pytest.mark.parametrize("name", FLOW_MODELS)
def test_no_default_of_a_flow_model_leaves_the_gradient_to_one_step(name):
    squared = default_gains(name) ** 2
    assert len(squared) >= 3 and squared.max() <= 0.9 * squared.sum()


def test_the_gains_of_the_large_turbo_model_by_hand():
    """CPS at eta .7: c_v = (1 - s) s' cos - (1 - s') s, std = s' sin of .35 pi; from .6022 to .0089 -.5952 / .00796."""
    official = default_gains("sd3.5-large-turbo", **{"update.step_weight": "official"})
    assert official.tolist() == pytest.approx([0.1862, 0.5635, 74.81], rel=1e-3)
    sine, cosine = math.sin(0.35 * math.pi), math.cos(0.35 * math.pi)
    s, after = 0.602151, 0.00892857
    assert official[2].item() == pytest.approx(((1 - after) * s - (1 - s) * after * cosine) / (after * sine), rel=1e-4)
    equal = default_gains("sd3.5-large-turbo").tolist()
    assert equal == pytest.approx([3 / sum(1 / gain for gain in official.tolist())] * 3, rel=1e-5)


FLOW_GRPO = {  # setting: official value, with its line at ac4c86e
    "model.resolution": 512,  # config/grpo.py:117
    "model.guidance_scale": 4.5,  # config/grpo.py:115
    "model.text_tokens": 128,  # scripts/train_sd3.py:625, max_sequence_length
    "model.precision": "fp16",  # config/base.py:21
    "model.lora_rank": 32,  # scripts/train_sd3.py:430
    "model.lora_alpha": 64.0,  # scripts/train_sd3.py:431
    "schedule.sde": "flow",
    "schedule.steps": 10,  # config/grpo.py:113
    "schedule.eta": 0.7,  # config/base.py:54, noise_level
    "advantage.normalisation": "group",
    "advantage.std": "batch",  # config/grpo.py:129, global_std
    "advantage.clip": 5.0,  # config/base.py:84
    "method.group_size": 24,  # config/grpo.py:119
    "method.clip_range": 1e-4,  # config/base.py:86
    "method.kl_weight": 8e-4,  # from config/grpo.py:128, see below
    "method.shared_noise": False,
    "update.inner_epochs": 1,  # config/grpo.py:126
    "update.lr": 3e-4,  # config/base.py:63
    "update.betas": (0.9, 0.999),  # config/base.py:65, 67
    "update.weight_decay": 1e-4,  # config/base.py:69
    "update.epsilon": 1e-8,  # config/base.py:71
    "update.max_grad_norm": 1.0,  # config/base.py:76
    "update.guidance_gradient": "conditional",  # scripts/train_sd3.py:190
    "eval.guidance_scale": 4.5,  # config/grpo.py:115
    "eval.eta": 0.0,  # scripts/train_sd3.py:258, noise_level
}


def test_flow_grpos_preset_has_the_numbers_of_the_official_code():
    """github.com/yifan123/flow_grpo: config/grpo.py (pickscore_sd3), config/base.py, scripts/train_sd3.py.

    Their KL, with a weight of 0.01, lacks the step size |dt|. Over the nine trained steps ours is 25.1, 21.4, 18.0,
    14.9, 12.0, 9.5, 7.3, 5.4 and 3.7 times theirs (shift 3 on linspace), 13.0 on the mean.
    """
    resolved = resolve(Request(method="grpo", model="sd3.5-medium", reward="pickscore"))
    assert resolved.preset == "flow-grpo-sd3.5-medium"
    config = resolved.config
    plain = asdict(config) | {"method": config.method.settings}
    for key, official in FLOW_GRPO.items():
        section, name = key.split(".")
        assert plain[section][name] == official, key
    assert config.method.settings["kl_weight"] == pytest.approx(0.01 / 13.0, rel=0.05)
    assert config.sample.images_per_epoch == 48 * config.method.settings["group_size"]
    assert config.update.minibatch * config.update.accumulation == 48 / 2  # two optimiser steps an epoch
    assert sum(trained_steps(config.schedule, "official")) == int(10 * 0.99)  # timestep_fraction, grpo.py:127


def official_average(optimiser_steps):
    """Weight of the adapter after each optimiser step in Flow-GRPO's average (flow_grpo/ema.py): it is asked after each
    of an epoch's four batches, two of which make an optimiser step (grpo.py:120 and 125, with 32 GPUs)."""
    weights = np.zeros(optimiser_steps + 1)
    weights[0] = 1.0
    for batch in range(1, 2 * optimiser_steps + 1):
        step = batch // 2
        if (step + 1) % 8 == 0:
            keep = min((1 + step) / (10 + step), 0.9)
            weights *= keep
            weights[step] += 1 - keep
    return weights


@pytest.mark.parametrize(("steps", "official", "ours"), [(120, 31.4, 35.9), (200, 34.6, 37.3)])
def test_flow_grpos_preset_averages_over_as_many_steps_as_the_official_code(steps, official, ours):
    """The age of an average: steps since its weights were the newest, on the mean. The budget is 200 steps."""
    ema = resolve(Request(method="grpo", model="sd3.5-medium", reward="pickscore")).config.ema
    weights = np.zeros(steps + 1)
    weights[0] = 1.0
    for step in range(1, steps + 1):
        keep = average_keep(ema.decay, step, warmup=ema.warmup)
        weights *= keep
        weights[step] += 1 - keep
    age = steps - np.arange(steps + 1)
    assert official_average(steps) @ age == pytest.approx(official, abs=0.1)
    assert weights @ age == pytest.approx(ours, abs=0.1)
    assert np.abs(np.cumsum(weights) - np.cumsum(official_average(steps))).mean() < 0.04
