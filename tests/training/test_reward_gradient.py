"""Direct reward back-propagation: the right gradient, through the right steps, for rewards that have one."""

import dataclasses

import pytest
import torch

from factories import GRADIENT_METHODS, make_method, make_resolved, make_trainer, make_updater, sample_groups
from sdpo_bench.advantages.experience import Experience, UpdateLog
from sdpo_bench.api import Backprop, Reward
from sdpo_bench.cli.entry import main
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import RunFailed, UsageError
from sdpo_bench.scoring.scorer import Scorer
from sdpo_bench.training.likelihood_free import last_steps, rewards_alone
from sdpo_bench.training.update_order import Order


class Red(Reward):
    """Mean of the red channel minus that of the blue one: a reward whose gradient is known."""

    differentiable = True

    def __call__(self, images, prompts):
        return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))


def in_order(groups, steps):
    return Order(torch.arange(groups), torch.arange(steps).expand(groups, -1))


def setup(policy, method, groups=3, steps=3, **options):
    schedule, trajectories = sample_groups(policy, steps, groups, members=1, shared_noise=False)
    updater = make_updater(policy, schedule, method, minibatch=groups, **options)
    updater.scorer = Scorer("red", Red(None), updater.ledger)
    none = torch.zeros(groups, 1, 0)
    return updater, Experience(trajectories, none, none)


def gradient_of(updater):
    found = {n: p.grad.clone() for n, p in updater.parameters.items()}
    updater.optimiser.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_draft_s_gradient_equals_autograd_through_the_sampler(tiny_policy, depth):
    """Walk the last steps by hand with the noise that was drawn, and differentiate the mean reward."""
    updater, experience = setup(tiny_policy, make_method("draft", steps=depth))
    (task,) = next(iter(_windows(updater)))
    updater._accumulate(experience, [task], log := UpdateLog(3), fresh=True)
    ours = gradient_of(updater)
    t, schedule = experience.trajectories, updater.schedule
    state = t.latents[:, 0, 3 - depth]
    for i in range(3 - depth, 3):
        at = torch.full((3,), i)
        noise = (t.latents[:, 0, i + 1] - schedule.mean_from_original(t.x0[:, 0, i], t.latents[:, 0, i], at)).detach()
        state = (
            schedule.denoise(tiny_policy.predict(state, schedule.timesteps[at], t.conditioning), state, at).mean + noise
        )
    reward = Red(None)(tiny_policy.decode(state), t.prompts)
    assert torch.allclose(log.rewards[0][:, 0], reward.detach(), atol=1e-6)
    (-reward.mean()).backward()
    for name, gradient in gradient_of(updater).items():
        assert torch.allclose(ours[name], gradient, rtol=1e-4, atol=1e-9), name
    assert any(g.abs().max() > 0 for g in ours.values())
    touched = torch.tensor(log.summary()["gradient_share_by_step"]) > 0
    assert touched.tolist() == [i >= 3 - depth for i in range(3)]


def _windows(updater):
    from sdpo_bench.training.update_order import windows

    return windows(in_order(3, 3), updater.settings, updater.method.granularity)


def test_an_unchanged_policy_replays_the_sampled_image(tiny_policy):
    """Before any update the re-run last step gives the very images that were sampled, so the very rewards."""
    updater, experience = setup(tiny_policy, make_method("draft", steps=3))
    updater.inner_epoch(experience, in_order(3, 3), log := UpdateLog(3))
    samples = tiny_policy.decode(experience.trajectories.latents[:, 0, -1])
    assert torch.allclose(log.rewards[0][:, 0], Red(None)(samples, []), atol=1e-5)


def test_refl_draws_its_step_from_the_window_uniformly():
    orders = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(s)) for s in range(900)])
    chosen = last_steps(orders, 3)
    counts = torch.bincount(chosen, minlength=8)
    assert counts[:5].sum() == 0
    assert (counts[5:] - 300).abs().max() < 60  # four standard deviations of a binomial
    assert last_steps(orders, 1).unique().tolist() == [7]
    assert make_method("refl").backprop(40) == Backprop(1, 10), "the official window"
    assert make_method("refl").backprop(1) == Backprop(1, 1)


@pytest.mark.parametrize(
    ("window", "num_steps", "steps"),
    [(0.14, 50, 7), (0.28, 50, 14), (0.07, 100, 7), (0.56, 25, 14), (0.141, 50, 8), (0.25, 5, 2), (1e-12, 50, 1)],
)
def test_a_window_of_a_whole_number_of_steps_has_no_step_more(window, num_steps, steps):
    """.14 x 50 is 7, which floats multiply to 7.000000000000001; a started step counts (1.25 steps are 2)."""
    assert make_method("refl", window=window).backprop(num_steps) == Backprop(1, steps)


def test_refl_scores_the_predicted_original_of_its_step(tiny_policy):
    updater, experience = setup(tiny_policy, make_method("refl", window=1.0))
    order = Order(torch.arange(3), torch.tensor([[0, 1, 2], [1, 0, 2], [2, 1, 0]]))
    updater.inner_epoch(experience, order, log := UpdateLog(3))
    originals = experience.trajectories.x0[torch.arange(3), 0, torch.arange(3)]
    assert torch.allclose(log.rewards[0][:, 0], Red(None)(tiny_policy.decode(originals), []), atol=1e-5)
    assert min(log.summary()["gradient_share_by_step"]) > 0


def test_losses_by_hand():
    batch = rewards_alone(torch.tensor([[1.0], [3.0]]), 4)
    assert make_method("draft").loss(batch).value == -2
    assert make_method("refl").loss(batch).value == -2
    reached = make_method("refl", target=2.0).loss(batch)  # 2 - 1 and nothing
    assert (reached.value, reached.metrics["target_reached"]) == (0.5, 0.5)


@pytest.mark.parametrize(("name", "options"), [("draft", {"steps": 3}), ("refl", {"window": 1.0})])
def test_following_the_gradient_raises_the_reward(tiny_policy, name, options):
    updater, experience = setup(tiny_policy, make_method(name, **options), lr=1e-2)
    means = []
    for _ in range(6):
        updater.inner_epoch(experience, in_order(3, 3), log := UpdateLog(3))
        means.append(float(log.rewards[0].mean()))
    assert means[-1] > means[0] + 1e-3
    assert means == sorted(means)


@pytest.mark.parametrize("name", GRADIENT_METHODS)
def test_a_reward_without_gradient_is_refused_before_anything_is_done(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["run", "--method", name, "--reward", "jpeg-compressibility"])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert "'jpeg-compressibility' has none" in message
    assert "emoji-align" in message
    assert not list(tmp_path.iterdir())


def test_a_reward_that_only_claims_a_gradient_fails_clearly(tiny_policy):
    updater, experience = setup(tiny_policy, make_method("draft"))
    updater.scorer.reward = type("Claim", (Red,), {"__call__": lambda s, i, p: i.detach().mean((1, 2, 3))})(None)
    with pytest.raises(RunFailed, match="declares itself differentiable"):
        updater.inner_epoch(experience, in_order(3, 3), UpdateLog(3))


def test_settings_without_effect_are_refused():
    for key in ("update.step_weight", "advantage.gamma"):
        value = "official" if "weight" in key else 0.5
        with pytest.raises(UsageError, match="no effect"):
            resolve(Request(method="draft", overrides={key: value}))
    with pytest.raises(UsageError, match="there are 5"):
        resolve(Request(method="draft", overrides={"method.steps": 6, "schedule.steps": 5}))


def test_deterministic_sampling_is_fine_without_log_probabilities(tiny_pipe, tmp_path):
    trainer = make_trainer(make_resolved(tiny_pipe, "draft", **{"schedule.eta": 0.0}), tmp_path)
    trainer.train()
    row = trainer.run.log()[-1]
    assert row["reward_std"] > 0
    assert dataclasses.asdict(trainer.ledger)["reward_backward"] == 16
