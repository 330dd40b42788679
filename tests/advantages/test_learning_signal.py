"""What is learnt from sampled trajectories, put together again by hand from its parts."""

from types import SimpleNamespace

import pytest
import torch

from factories import make_resolved, make_trainer
from sdpo_bench.advantages.learning_signal import Signals
from sdpo_bench.advantages.normalise import Normaliser, advantages
from sdpo_bench.rewards.jpeg_incompressibility import JpegIncompressibility
from sdpo_bench.rollout.base_log_probs import base_statistics
from sdpo_bench.rollout.group_cost import PROBE_GROUPS, PROBE_MEMBERS, probe_cost
from sdpo_bench.scoring import image_statistics
from sdpo_bench.scoring.dense_rewards import choose_queries, step_rewards
from sdpo_bench.system.distributed import Processes


def first_epoch(tiny_pipe, folder, method, **settings):
    """A trainer whose policy has left its base, its trajectories, and what its signals make of them."""
    trainer = make_trainer(make_resolved(tiny_pipe, method, **settings), folder)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trainer.policy.lora_parameters().items():
        if "lora_B" in name:
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    mine = torch.arange(trainer.groups_per_epoch)
    trajectories = trainer._sample(mine, len(mine), len(mine))
    return trainer, trajectories, *trainer.signals.of(trajectories, mine, len(mine))


def test_a_sparse_reward_is_that_of_the_sample_and_stands_at_the_last_step(tiny_pipe, tmp_path, monkeypatch):
    """Not of the last predicted original, which has none of the last step's noise."""
    pixel = lambda images: images[:, :, 3, 3].sum(1)  # noqa: E731
    monkeypatch.setattr(JpegIncompressibility, "__call__", lambda self, images, prompts: pixel(images))
    trainer, trajectories, experience, _ = first_epoch(tiny_pipe, tmp_path, "d3po")
    sample, original = (
        pixel(trainer.policy.decode(states[:, :, -1].flatten(0, 1))).view(experience.final_rewards.shape)
        for states in (trajectories.latents, trajectories.x0)
    )
    assert torch.allclose(experience.final_rewards, sample, atol=1e-6)
    assert (sample - original).abs().max() > 1e-4
    assert torch.equal(experience.rewards[..., -1], experience.final_rewards)
    assert not experience.rewards[..., :-1].any()


@pytest.mark.parametrize("mode", ["full", "predicted"])
@pytest.mark.parametrize("steps", [2, 3, 4])
def test_logged_pictures_are_the_final_ones(tiny_pipe, tmp_path, mode, steps):
    """With three queries their order differs: first, last, anchor; or in the order of the steps."""
    overrides = {"schedule.steps": steps, "method.reward": mode}
    trainer, trajectories, *_, metrics = first_epoch(tiny_pipe, tmp_path, "sdpo", **overrides)
    final = trainer.policy.decode(trajectories.x0[:, :, -1].flatten(0, 1))
    expected = image_statistics.summary(image_statistics.Sums.of(final))
    assert metrics["pictures"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.9, 0.0])
def test_advantages_have_the_settings_of_the_run(tiny_pipe, tmp_path, gamma):
    settings = {"advantage.gamma": gamma, "advantage.clip": 0.5, "advantage.normalisation": "batch"}
    _, trajectories, experience, metrics = first_epoch(tiny_pipe, tmp_path, "sdpo", **settings)
    expected = advantages(
        experience.rewards, trajectories.prompts, Normaliser("batch"), gamma=gamma, clip=0.5, sparse=False
    )
    assert torch.equal(experience.advantages, expected)
    assert experience.advantages.abs().max() == 0.5
    assert metrics["advantage_mean"] == pytest.approx(float(expected.mean()), abs=1e-6)


@pytest.mark.parametrize(
    "method", ["sdpo", "sdpo-official", "sdpo_full", "sdpo_sparse", "ddpo", "grpo", "rebel", "tdpo"]
)
def test_a_reward_that_is_the_same_for_all_images_teaches_nothing(tiny_pipe, tmp_path, monkeypatch, method):
    monkeypatch.setattr(
        JpegIncompressibility, "__call__", lambda self, images, prompts: torch.full((len(images),), 0.1)
    )
    method, _, guard = method.partition("-")
    settings = {"method.guard": guard} if guard else {}
    *_, experience, metrics = first_epoch(tiny_pipe, tmp_path, method, **settings)
    assert metrics["reward_mean"] == pytest.approx(0.1)
    assert metrics["advantage_max_abs"] == metrics["advantage_std"] == metrics["advantage_mean"] == 0
    assert not experience.advantages.any()


def test_the_method_s_own_guard_of_predicted_rewards_is_used(tiny_pipe, tmp_path, monkeypatch):
    from sdpo_bench.advantages import learning_signal as signals

    seen = []

    def watched(queries, rewards, mode, guard="convex"):
        seen.append((mode, guard))
        return step_rewards(queries, rewards, mode, guard)

    monkeypatch.setattr(signals, "step_rewards", watched)
    for guard in ("official", "convex"):
        trainer = first_epoch(tiny_pipe, tmp_path / guard, "sdpo", **{"method.guard": guard})[0]
        assert trainer.method.reward_guard == guard
    assert seen == [("predicted", "official"), ("predicted", "convex")]


@pytest.mark.parametrize("method", ["sdpo", "d3po", "grpo", "ddpo"])
def test_the_divergence_is_a_sum_over_steps_and_a_mean_over_members(tiny_pipe, tmp_path, method):
    """Measured on two trajectories of two groups, however large these are, and on all where there is a reference."""
    trainer, trajectories, experience, metrics = first_epoch(tiny_pipe, tmp_path, method)
    n = len(trajectories.prompts) if trainer.method.needs_reference else PROBE_GROUPS
    with trainer.policy.reference():
        log_probs, kl = base_statistics(trainer.policy, trainer.schedule, trajectories, range(n), 64)
    assert kl.shape[1:] == (trainer.method.members, 3)
    if not trainer.method.needs_reference:
        kl = kl[:, :PROBE_MEMBERS]
        # Two groups at three steps; whoever shares a first state calls once for it.
        calls = {"sdpo": 2 * 5, "grpo": 2 * 5, "ddpo": 2 * 3}
        assert probe_cost(trainer.method, 3, 4, guided=False) == calls[method]
    assert metrics["kl_to_base"] == pytest.approx(float(kl.sum()) / kl[..., 0].numel(), rel=1e-5)
    assert metrics["kl_to_base"] > 0
    if trainer.method.needs_reference:
        assert torch.allclose(experience.ref_log_probs, log_probs)
        assert not torch.allclose(experience.ref_log_probs, trajectories.log_probs)
    else:
        assert experience.ref_log_probs is None


def test_predicted_rewards_come_from_the_queried_steps(tiny_pipe, tmp_path):
    _, trajectories, experience, metrics = first_epoch(tiny_pipe, tmp_path, "sdpo")
    steps = choose_queries(trajectories.x0, "predicted").steps
    queried = experience.rewards.gather(-1, steps)
    assert metrics["reward_by_query"]["last"]["mean"] == pytest.approx(float(experience.final_rewards.mean()), rel=1e-5)
    assert metrics["reward_by_query"]["first"]["mean"] == pytest.approx(float(queried[..., 0].mean()), rel=1e-5)


def test_prompts_of_all_processes_are_in_the_order_of_their_groups():
    """As the rewards are, or returns would enter the buffers of other prompts."""
    processes = Processes()
    processes.count = 2
    others = [(3, "dog"), (1, "bee")]
    processes.gather = lambda value: [value, others]
    processes.rows = lambda values, numbers: values
    signals = SimpleNamespace(context=SimpleNamespace(processes=processes))
    answers = SimpleNamespace(parts={})
    none = torch.zeros(2, 1, 1)
    found = Signals._everyone(signals, answers, none, none, {}, ["cat", "ant"], torch.tensor([2, 0]))
    assert found.prompts == ["ant", "bee", "cat", "dog"]
