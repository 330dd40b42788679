"""A critic beside the policy: seeded, trained by the method's loss, restored bit for bit, and of use."""

import pytest
import torch

import factories
from factories import make_method, make_resolved, make_trainer, make_updater, random_experience, sample_groups
from sdpo_bench.advantages.experience import UpdateLog
from sdpo_bench.api import Critic, Loss, Method
from sdpo_bench.errors import RunFailed
from sdpo_bench.runs.saved_adapter import save_adapter
from sdpo_bench.training import checkpoint
from sdpo_bench.training.critic import state_values
from sdpo_bench.training.update_order import Order
from sdpo_bench.training.updater import CRITIC, Updater


class Regression(Method):
    """A critic that learns rewards, and a policy that is left alone but for a vanishing term."""

    def critic(self, latent_shape, num_steps):
        return Critic(make_method("tdpo").critic(latent_shape, num_steps).network, 1e-2)

    def loss(self, batch):
        return Loss(((batch.values - batch.rewards) ** 2).mean() + 0 * batch.log_probs.sum())


def in_order(groups, steps):
    return Order(torch.arange(groups), torch.arange(steps).expand(groups, -1))


def critic_of(updater):
    return {n: p for n, p in updater.parameters.items() if n.startswith(CRITIC)}


def test_a_critic_depends_on_the_seed_alone(tiny_policy):
    schedule, _ = sample_groups(tiny_policy)
    method = make_method("tdpo")
    torch.manual_seed(5)
    first = make_updater(tiny_policy, schedule, method)
    before = torch.get_rng_state()
    second = make_updater(tiny_policy, schedule, method)
    assert torch.equal(before, torch.get_rng_state()), "torch's own generator is left as it was"
    for name, parameter in critic_of(first).items():
        assert torch.equal(parameter, critic_of(second)[name])
    other = Updater(first.context, first.settings, first.weights, seed=1)
    assert any(not torch.equal(p, critic_of(other)[n]) for n, p in critic_of(first).items())


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["step", "trajectory"])
def test_a_critic_learns_the_value_of_states(tiny_policy, granularity):
    Regression.granularity = granularity
    schedule, trajectories = sample_groups(tiny_policy, members=1, shared_noise=False)
    experience = random_experience(trajectories)
    updater = make_updater(tiny_policy, schedule, Regression(None), minibatch=4)
    errors = []
    for _ in range(24):
        updater.inner_epoch(experience, in_order(4, 3), log := UpdateLog(3))
        errors.append(log.summary()["loss"])
    assert errors[-1] < 0.3 * errors[0]
    assert torch.allclose(updater.sampled_values(trajectories), experience.rewards, atol=1.0)


def test_values_are_those_of_the_states_before_each_step(tiny_policy):
    schedule, trajectories = sample_groups(tiny_policy)
    updater = make_updater(tiny_policy, schedule, Regression(None))
    with torch.no_grad():
        updater.critic.head[-1].weight.fill_(1.0)
    values = updater.sampled_values(trajectories)
    for i in range(3):
        for g in range(2):
            alone = updater.critic(trajectories.latents[:, g, i], torch.full((4,), i))
            assert torch.allclose(values[:, g, i], alone, atol=1e-5)
    picked = state_values(updater.critic, trajectories, torch.tensor([2, 0]), torch.tensor([[1], [2]]))
    assert torch.allclose(picked[:, :, 0], torch.stack([values[2, :, 1], values[0, :, 2]]), atol=1e-5)


def test_the_critic_s_error_does_not_scale_the_policy_s_step(tiny_policy):
    """Gradients are clipped apart: a critic ten thousand times off leaves the policy's gradient as it is."""
    schedule, _ = sample_groups(tiny_policy, members=1, shared_noise=False)
    norms = []
    for scale in (1.0, 1e4):
        updater = make_updater(tiny_policy, schedule, make_method("tdpo", critic_clip_range=0.0), minibatch=4, lr=1e-9)
        for parameter in critic_of(updater).values():
            parameter.grad = torch.full_like(parameter, scale)
        for parameter in tiny_policy.lora_parameters().values():
            parameter.grad = torch.full_like(parameter, 1e-6)
        updater._optimiser_step(log := UpdateLog(3))
        norms += log.grad_norms
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_a_critic_s_gradient_that_is_none_ends_the_run_before_the_step(tiny_policy):
    schedule, _ = sample_groups(tiny_policy, members=1, shared_noise=False)
    updater = make_updater(tiny_policy, schedule, make_method("tdpo"))
    for parameter in updater.parameters.values():
        parameter.grad = torch.full_like(parameter, 1e-3)
    next(iter(critic_of(updater).values())).grad.fill_(torch.inf)
    before = {name: p.detach().clone() for name, p in updater.parameters.items()}
    with pytest.raises(RunFailed, match="the gradient norm is inf at optimiser step 0"):
        updater._optimiser_step(UpdateLog(3))
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in updater.parameters.items())


def test_the_critic_is_part_of_the_checkpoint(tiny_pipe, tmp_path):
    trainer = make_trainer(make_resolved(tiny_pipe, "tdpo"), tmp_path)
    trainer.train()
    learnt = {n: p.detach().clone() for n, p in critic_of(trainer.updater).items()}
    assert any(p.abs().max() > 0 for n, p in learnt.items() if n.endswith("head.2.weight"))
    path, _ = checkpoint.latest(trainer.run)
    _, tensors = checkpoint.read(path)
    assert {n for n in tensors if n.startswith(CRITIC)} == set(learnt)
    assert any(n.startswith("optimiser/exp_avg/critic/") for n in tensors)
    again = make_trainer(make_resolved(tiny_pipe, "tdpo"), tmp_path)
    again._resume()
    assert all(torch.equal(p, learnt[n]) for n, p in critic_of(again.updater).items())


class Counting(torch.nn.Module):
    """Values that depend on all that a network may have: weights, running statistics, a counter, chance."""

    def __init__(self, size):
        super().__init__()
        self.register_buffer("asked", torch.zeros((), dtype=torch.int64))
        self.norm, self.head = torch.nn.BatchNorm1d(size), torch.nn.Linear(size, 1)

    def forward(self, latents, steps):
        self.asked += 1
        kept = torch.nn.functional.dropout(self.norm(latents.flatten(1)), 0.5)
        return self.head(kept)[:, 0] + 1e-3 * self.asked


class WithState(Regression):
    """A critic like those that people write."""

    granularity = "step"

    def critic(self, latent_shape, num_steps):
        return Critic(Counting(4 * latent_shape[1] * latent_shape[2]), 1e-2)


@pytest.mark.slow
def test_a_critic_with_state_goes_on_as_if_never_stopped(tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(factories, "make_method", lambda name, **settings: WithState(None))
    resolved = make_resolved(tiny_pipe, "ddpo")
    whole = make_trainer(resolved, tmp_path / "whole")
    whole.train()

    def stop(tick):
        if tick.phase == "epoch" and tick.epoch == 1:
            raise KeyboardInterrupt

    torch.manual_seed(7)  # whatever the process has drawn before
    stopped = make_trainer(resolved, tmp_path / "stopped")
    stopped.watch = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    torch.manual_seed(8)
    resumed = make_trainer(resolved, tmp_path / "stopped")
    resumed.train()
    assert len(whole.run.log()) > 1 and resumed.run.log() == whole.run.log()
    assert resumed.updater.fingerprint() == whole.updater.fingerprint()
    assert whole.updater.buffers["critic/asked"] > 0
    whole.updater.critic.asked += 1
    assert resumed.updater.fingerprint() != whole.updater.fingerprint(), "processes compare it too"


def test_a_critic_without_sizes_is_refused(tiny_policy):
    class Lazy(Regression):
        def critic(self, latent_shape, num_steps):
            return Critic(torch.nn.LazyLinear(1), 1e-2)

    schedule, _ = sample_groups(tiny_policy)
    with pytest.raises(RunFailed, match="gave a lazy network; expected one with sizes"):
        make_updater(tiny_policy, schedule, Lazy(None))


def test_a_critic_is_not_in_the_exported_adapter(tiny_pipe, tmp_path):
    from safetensors.torch import load_file

    trainer = make_trainer(make_resolved(tiny_pipe, "tdpo"), tmp_path)
    save_adapter(trainer.policy, tmp_path / "lora")
    assert all("lora" in n for n in load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors"))
