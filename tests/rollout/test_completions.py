"""Completions: where states of stored trajectories lead without further noise, and what that costs."""

import pytest
import torch

from sdpo_bench.errors import UsageError
from sdpo_bench.rollout.sampling import Noise, completions, replay, rollout
from sdpo_bench.rollout.schedule import make_schedule

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}


class Velocity:
    """A model of one number a latent whose velocity is the latent itself, and which counts its calls."""

    latent_shape, device, storage = (1, 1, 1), torch.device("cpu"), torch.device("cpu")

    def __init__(self):
        self.calls = []

    def encode(self, prompts):
        return torch.zeros(len(prompts))

    def predict(self, latents, timesteps, conditioning):
        assert len(latents) == len(timesteps) == len(conditioning)
        self.calls += (timesteps / 1000).tolist()
        return latents


def test_completions_by_hand():
    """Sigmas 1, 3/4, 1/2, 1/4, 0 and v = x: each step of the ODE is x (1 - 1/4)."""
    policy, schedule = Velocity(), make_schedule(EULER, 4, sampler="flow", sde="cps", eta=0.5)
    sampled = rollout(policy, schedule, ["a", "b"], Noise((0,)), groups=range(2), members=3, shared_noise=True)
    policy.calls = []
    found = completions(policy, schedule, sampled, [0, 1, 2, 3], shared_until=0)
    states = sampled.latents[:, :, :4]
    expected = states * torch.tensor([0.75**4, 0.75**3, 0.75**2, 0.75]).view(4, 1, 1, 1)
    assert torch.allclose(found, expected, atol=1e-6)
    # The first step comes from the stored predicted original; the shared start is completed once a group.
    assert len(policy.calls) == 2 * (3 + 3 * 2 + 3 * 1)
    assert sorted(set(policy.calls)) == [0.25, 0.5, 0.75]
    # Flow models end deterministically, so the last state's completion is the sample.
    assert torch.allclose(found[:, :, 3], sampled.latents[:, :, 4], atol=1e-6)
    predicted = completions(policy, schedule, sampled, [1], shared_until=0, image="predicted")
    assert torch.allclose(predicted, found[:, :, 1:2], atol=1e-6)


def test_micro_batches_and_no_groups_or_states():
    policy, schedule = Velocity(), make_schedule(EULER, 3, sampler="flow", sde="cps", eta=0.5)
    sampled = rollout(policy, schedule, ["a", "b"], Noise((0,)), groups=range(2), members=3)
    whole, split = (
        completions(policy, schedule, sampled, [0, 1], shared_until=0, micro_batch=size) for size in (64, 4)
    )
    assert torch.equal(whole, split)
    assert completions(policy, schedule, sampled, [], shared_until=0).shape == (2, 3, 0, 1, 1, 1)
    nobody = rollout(policy, schedule, [], Noise((0,)), groups=[], members=3)
    assert completions(policy, schedule, nobody, [0, 1], shared_until=0).shape == (0, 3, 2, 1, 1, 1)


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"eta": 0.5, "std_floor": 0.01}])
def test_a_completion_is_the_trajectory_that_eta_0_gives_from_there(tiny_policy, options):
    """DDIM: with the same timesteps and noise that is multiplied by 0, from the start of each trajectory."""
    config = dict(tiny_policy.pipeline.scheduler.config)
    noisy, still = make_schedule(config, 3, **options), make_schedule(config, 3, eta=0.0)
    sampled = rollout(tiny_policy, noisy, ["cat", "dog"], Noise((0,)), groups=range(2), members=2)
    found = completions(tiny_policy, noisy, sampled, [0], shared_until=0)
    start, noise = sampled.latents[:, :, 0], torch.zeros(2, 2, 3, *tiny_policy.latent_shape)
    again = replay(tiny_policy, still, ["cat", "dog"], start, noise, shared_start=False)
    assert torch.allclose(found[:, :, 0], again.latents[:, :, -1], atol=1e-4)
    assert not torch.allclose(found[:, :, 0], sampled.latents[:, :, -1], atol=1e-2)
    predicted = completions(tiny_policy, noisy, sampled, [0], shared_until=0, image="predicted")
    assert torch.allclose(predicted[:, :, 0], again.x0[:, :, -1], atol=1e-4)


def test_a_consistency_models_sampler_has_no_deterministic_form():
    with pytest.raises(UsageError, match="throws fresh noise at every step"):
        make_schedule({}, 4, sampler="lcm").deterministic()
