"""Evaluation of flow-matching models: the deterministic ODE unless asked otherwise, and rows that say so."""

from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from sdpo_bench.config.sampler_id import sampler_id
from sdpo_bench.errors import UsageError
from sdpo_bench.evaluation.evaluate import evaluation_schedule
from sdpo_bench.rollout.sampling import Noise, sample
from sdpo_bench.settings import EvaluationSettings

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
ODE = EvaluationSettings(sampler="flow", eta=0, steps=(1, 4))


@pytest.fixture
def policy(tiny_policy):
    tiny_policy.pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(EULER)
    return tiny_policy


def test_rows_carry_the_rule():
    assert sampler_id(ODE) == "flow ode trailing guidance=1 sample bank=0"
    assert sampler_id(replace(ODE, eta=0.5)) == "flow cps eta=0.5 trailing guidance=1 sample bank=0"
    assert sampler_id(replace(ODE, spacing="linspace")) == "flow ode linspace guidance=1 sample bank=0"
    assert sampler_id(replace(ODE, sigmas=(1.0, 0.5, 0.25, 0.1))).startswith("flow ode trailing sigmas=1,0.5,0.25,0.1 ")
    assert sampler_id(EvaluationSettings()) == "ddim trailing eta=1 guidance=1 sample bank=0"


@pytest.mark.parametrize("steps", [1, 4])
def test_pictures_are_those_of_the_pipelines_own_loop(policy, steps):
    """Denoiser, stock scheduler, step after step, as a pipeline of diffusers does it."""
    noise, names, prompts = Noise(("test",)), ["a", "b"], ["cat", "dog"]
    latents, _ = sample(policy, evaluation_schedule(policy, ODE, steps), prompts, noise, groups=names)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(EULER)
    scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
    current, conditioning = noise.initial(policy.latent_shape, names, 1, False)[:, 0], policy.encode(prompts)
    with torch.no_grad():
        for t in scheduler.timesteps:
            current = scheduler.step(policy.predict(current, t.expand(2), conditioning), t, current).prev_sample
    assert torch.allclose(latents, current, atol=1e-5)


def test_a_list_of_sigmas_serves_the_step_count_of_its_length(policy):
    settings = replace(ODE, sigmas=(1.0, 0.5, 0.25, 0.1))
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(EULER)
    scheduler.set_timesteps(sigmas=[1.0, 0.5, 0.25, 0.1])
    assert torch.equal(evaluation_schedule(policy, settings, 4).sigmas, scheduler.sigmas)
    assert evaluation_schedule(policy, settings, 1).sigmas.tolist() == [1.0, 0.0]
    with pytest.raises(UsageError, match="has 3 values"):
        evaluation_schedule(policy, replace(ODE, sigmas=(1.0, 0.5, 0.25)), 4)


def test_another_sampler_is_refused_by_the_loaded_model_too(policy):
    """Of a hub model the files may not have been there when the settings were read."""
    with pytest.raises(UsageError, match="is a flow-matching model"):
        evaluation_schedule(policy, replace(ODE, sampler="ddim"), 4)
