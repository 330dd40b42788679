"""Rewards of deterministic completions in training: bills, exact policies, micro-batches, resume, refusals."""

import pytest
import torch

from factories import LOSS_METHODS, make_method, make_resolved, make_trainer, mostly_slow
from sdpo_bench.api import COMPLETED_MODES, SINGLE_STEP_MODES
from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import cost_of_group, cost_of_probe
from sdpo_bench.scoring.scorer import supervise
from tools.random_pipeline import SMALL_FLOW, write_pipeline


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    return write_pipeline(SMALL_FLOW["sd3"], tmp_path_factory.mktemp("flow") / "sd3")


def run_of(folder, out, method="grpo", mode="completion", micro_batch=64, **overrides):
    flow = {"model.resolution": 16} if "sd3" in str(folder) else {}
    gamma = {"advantage.gamma": 0.0} if make_method(method).signal == "advantage" else {}
    settings = {"method.reward": mode, "budget.images": 8} | gamma | flow | overrides
    resolved = make_resolved(folder, method, **settings)
    return resolved, make_trainer(resolved, out, micro_batch=micro_batch, checkpoint_every=1)


def adapter(trainer):
    return [value.detach().clone() for value in trainer.policy.lora_parameters().values()]


def conforming_bill(resolved, trainer):
    """Trains one epoch of eight images and returns its bill, which must be as predicted and as made."""
    calls, predict = [], trainer.policy._call

    def counted(latents, *args):
        calls.append(len(latents))
        return predict(latents, *args)

    trainer.policy._call = counted
    trainer.train()
    (row,) = trainer.run.log()
    bill, cost, groups = row["bill"], cost_of_group(resolved), 8 // trainer.method.members
    assert sum(bill["forward"].values()) == sum(calls) == groups * cost.forward + cost_of_probe(resolved, groups)
    assert bill["backward"] == groups * cost.backward
    assert bill["reward_calls"] == groups * cost.rewards and not sum(bill["cached"].values())
    assert row["ratio_at_zero_update"] < 1e-4
    return bill


@pytest.mark.parametrize("mode", COMPLETED_MODES)
@pytest.mark.parametrize(("method", "shared"), [("grpo", True), ("grpo", False), ("sdpo", True)])
def test_the_bill_on_ddim_is_exact(tiny_pipe, tmp_path, mode, method, shared):
    """Four steps; completing state i costs 3 - i calls, of the shared start one a group and none for branches. SDPO's
    picture is the last predicted original, which the last step's noise does not reach."""
    own = {"method.shared_noise": shared} if method == "grpo" else {}
    resolved, trainer = run_of(tiny_pipe, tmp_path, method, mode, **{"schedule.steps": 4} | own)
    bill = conforming_bill(resolved, trainer)
    members, starts = trainer.method.members, 0 if mode == "branch" else 1 if shared else trainer.method.members
    later = [1, 2, 3] if method == "grpo" else [1, 2]
    groups = 8 // members
    assert bill["forward"]["reward"] == groups * (3 * starts + members * sum(3 - i for i in later))
    assert bill["reward_calls"] == groups * (starts + members * len(later) + members)


@pytest.mark.parametrize("window", ["all", "first:2", "window:2:1"])
@pytest.mark.parametrize("mode", COMPLETED_MODES)
def test_the_bill_on_a_flow_model_leaves_out_what_the_ode_knows(sd3, tmp_path, mode, window):
    """Five steps, the last never random: only states before random steps are completed."""
    overrides = {"schedule.steps": 5, "schedule.sde_steps": window}
    resolved, trainer = run_of(sd3, tmp_path, mode=mode, **overrides)
    bill = conforming_bill(resolved, trainer)
    random = [0, 1, 2, 3] if window == "all" else [0, 1]
    starts = 0 if mode == "branch" else 1
    assert bill["forward"]["reward"] == 2 * (4 * starts + 4 * sum(4 - i for i in random[1:]))
    assert bill["reward_calls"] == 2 * (starts + 4 * len(random))


MODES = [(name, mode) for name in LOSS_METHODS for mode in make_method(name).reward_modes]
QUICK = [("ddpo", "predicted"), ("tdpo", "completion"), ("rebel", "full"), ("d3po", "turning-point")]


@pytest.mark.parametrize(("method", "mode"), mostly_slow(MODES, QUICK))
def test_the_bill_of_every_method_is_exact_in_every_mode_that_it_takes(tiny_pipe, tmp_path, method, mode):
    own = {"method.reward": mode} if mode != "sparse" else {}
    if mode in SINGLE_STEP_MODES and make_method(method).signal == "advantage":
        own["advantage.gamma"] = 0.0
    resolved = make_resolved(tiny_pipe, method, **{"budget.images": 8} | own)
    trainer = make_trainer(resolved, tmp_path)
    before = adapter(trainer)
    conforming_bill(resolved, trainer)
    assert not all(torch.equal(a, b) for a, b in zip(before, adapter(trainer)))


@pytest.mark.parametrize(
    ("method", "mode", "message"),
    [
        ("ddpo", "branch", "got 'branch', which ddpo cannot use since it samples one image of a prompt. "
         "It takes sparse, predicted, full, completion, turning-point."),
        ("rebel", "branch", "rebel cannot use since it needs the return of a trajectory, and these rewards of steps do "
         "not add up to one. It takes sparse, predicted, full, completion."),
        ("rebel", "turning-point", "It takes sparse, predicted, full, completion."),
        ("sparse_dpo", "predicted", "sparse_dpo takes sparse rewards alone"),
        ("nft", "full", "nft takes sparse rewards alone"),
        ("draft", "full", "draft follows the reward's own gradient"),
        ("best_of_n", "full", "best_of_n trains nothing"),
    ],
)  # fmt: skip
def test_a_mode_that_a_method_cannot_use_is_refused(tiny_pipe, method, mode, message):
    with pytest.raises(UsageError, match=message):
        make_resolved(tiny_pipe, method, **{"method.reward": mode})


@pytest.mark.parametrize("method", ["sdpo", "grpo"])
@pytest.mark.parametrize("mode", SINGLE_STEP_MODES)
def test_rewards_that_do_not_add_up_have_no_return(tiny_pipe, method, mode):
    """R_n - R_i holds the later gains already, and a branch's reward is that of the step that branched. The default
    gamma of sdpo is 0.99, of grpo 1."""
    gamma = {"sdpo": "0.99", "grpo": "1"}[method]
    message = rf"{mode} rewards each step by itself, and advantage.gamma = {gamma} .* Use --set advantage.gamma=0\."
    with pytest.raises(UsageError, match=message):
        make_resolved(tiny_pipe, method, **{"method.reward": mode})
    own = make_resolved(tiny_pipe, method, **{"method.reward": mode, "advantage.gamma": 0.0})
    assert own.config.advantage.gamma == 0
    make_resolved(tiny_pipe, method, **{"method.reward": "completion"})  # gains add up


@pytest.mark.parametrize("mode", SINGLE_STEP_MODES)
def test_preferences_have_no_return_to_refuse(tiny_pipe, mode):
    assert make_resolved(tiny_pipe, "d3po", **{"method.reward": mode}).config.advantage is None


def test_rewards_of_steps_are_part_of_a_run_s_name_and_their_absence_is_not(tiny_pipe):
    plain, sparse, dense = (
        make_resolved(tiny_pipe, "ddpo", **own)
        for own in ({}, {"method.reward": "sparse"}, {"method.reward": "predicted"})
    )
    assert plain.run_id == sparse.run_id != dense.run_id
    assert "reward" not in plain.data["method"]["settings"] and dense.data["method"]["settings"]["reward"]
    for name, mode in (("sdpo", "predicted"), ("grpo", "sparse")):  # theirs is in every record
        assert make_resolved(tiny_pipe, name).data["method"]["settings"]["reward"] == mode


def test_a_trajectory_has_the_return_of_its_first_step_where_later_ones_are_random(sd3, tmp_path):
    """Steps 1 and 2 of five are random in the second epoch: the start gains what both gain together."""
    moving = {"schedule.steps": 5, "schedule.sde_steps": "window:2:1", "advantage.normalisation": "none"}
    _, trainer = run_of(sd3, tmp_path, "rebel", **moving, **{"advantage.gamma": 1.0, "advantage.clip": 0.0})
    trainer.state.epoch = 1
    trainer._groups_of_epoch(4)
    assert trainer.schedule.decision_steps().tolist() == [1, 2]
    sampled = trainer._rollout(["cat", "dog"], torch.arange(2))
    experience, _ = trainer.signals.of(sampled, torch.arange(2), 2, trainer._completions(sampled))
    assert experience.rewards[..., 0].abs().max() == 0 and experience.rewards.abs().max() > 0
    assert torch.allclose(experience.advantages[..., 0], experience.rewards.sum(-1), atol=1e-5)


def test_guidance_doubles_the_calls_of_completions(tiny_pipe, tmp_path):
    resolved, trainer = run_of(tiny_pipe, tmp_path, **{"model.guidance_scale": 2.0})
    assert conforming_bill(resolved, trainer)["forward"]["reward"] == 2 * 2 * (2 + 4 * 1)


@pytest.mark.parametrize("window", ["all", "window:2:1"])
def test_steps_of_a_policy_with_exact_completions_gain_nothing(sd3, tmp_path, window):
    """A model that always points at one picture: every state's ODE ends there, whatever noise was drawn before."""
    _, trainer = run_of(sd3, tmp_path, **{"schedule.steps": 5, "schedule.sde_steps": window})
    picture = torch.randn(trainer.policy.latent_shape, generator=torch.Generator().manual_seed(1))
    sigma = lambda timesteps: (timesteps / 1000).view(-1, 1, 1, 1)  # noqa: E731
    trainer.policy.predict = lambda latents, timesteps, conditioning: (latents - picture) / sigma(timesteps)
    trainer.scorer = None
    sampled = trainer._rollout(["cat", "dog"], torch.arange(2))
    completed = trainer._completions(sampled)
    assert torch.allclose(completed, picture.expand_as(completed), atol=1e-5)
    assert (sampled.latents[:, 0, 2] - sampled.latents[:, 1, 2]).abs().max() > 0.1


def test_gains_sum_to_what_the_whole_noise_has_changed(tiny_pipe, tmp_path):
    """R_n - R_0, which is the return of the first step with gamma 1 and the final reward without its start."""
    _, trainer = run_of(tiny_pipe, tmp_path, **{"method.shared_noise": False})
    reward = supervise("jpeg-incompressibility", trainer.scorer.reward)
    sampled = trainer._rollout(["cat", "dog"], torch.arange(2))
    experience, _ = trainer.signals.of(sampled, torch.arange(2), 2, trainer._completions(sampled))
    final, still = (
        reward(trainer.policy.decode(latents.flatten(0, 1)), ["cat"] * 4 + ["dog"] * 4).view(2, 4)
        for latents in (sampled.latents[:, :, -1], trainer._completions(sampled)[:, :, 0])
    )
    assert torch.allclose(experience.final_rewards, final, atol=1e-4)
    assert torch.allclose(experience.rewards.sum(-1), final - still, atol=1e-3)
    assert experience.rewards.std() > 0


@pytest.mark.parametrize("mode", ["completion", "branch"])
def test_micro_batches_change_the_gradient_by_rounding_alone(tiny_pipe, tmp_path, mode):
    """One optimiser step; AdamW's first moment is a tenth of its gradient. The reward is smooth."""
    found = []
    for size in (64, 3):
        overrides = {"update.minibatch": 2, "update.max_grad_norm": 1e9, "reward.name": "emoji-align"}
        _, trainer = run_of(tiny_pipe, tmp_path / str(size), mode=mode, micro_batch=size, **overrides)
        trainer.train()
        assert trainer.ledger.optimiser_steps == 1
        found.append([state["exp_avg"] for state in trainer.updater.optimiser.state.values()])
    largest = max(float(value.abs().max()) for value in found[0])
    assert largest > 0
    for value, other in zip(*found):
        assert torch.allclose(value, other, rtol=0, atol=1e-3 * largest)


@pytest.mark.parametrize("folder", ["tiny_pipe", "sd3"])
def test_a_resumed_run_goes_on_exactly(request, tmp_path, folder):
    chosen = request.getfixturevalue(folder)
    _, whole = run_of(chosen, tmp_path / "whole", "dense_grpo", **{"budget.images": 16})
    whole.train()
    _, first = run_of(chosen, tmp_path / "parts", "dense_grpo", **{"budget.images": 16})
    first.limit = type(first.limit)("images", 8)
    first.train()
    _, second = run_of(chosen, tmp_path / "parts", "dense_grpo", **{"budget.images": 16})
    second.train()
    assert second.epoch == whole.epoch == 2
    assert all(torch.equal(a, b) for a, b in zip(adapter(second), adapter(whole)))
    assert second.run.log() == whole.run.log()


def test_dense_grpo_is_grpo_with_gains_that_stand_alone(tiny_pipe):
    config = make_resolved(tiny_pipe, "dense_grpo").config
    assert config.method.settings["reward"] == "completion"
    assert (config.advantage.gamma, config.advantage.normalisation) == (0.0, "group")
    assert config.update.order == "accumulated"
    with pytest.raises(UsageError, match="dense_grpo is named for method.reward = completion"):
        make_resolved(tiny_pipe, "dense_grpo", **{"method.reward": "sparse"})


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("sdpo", {"schedule.sampler": "lcm"}, "lcm throws fresh noise at every step"),
        ("grpo", {"schedule.eta": 0.0}, "this schedule draws none"),
        ("sdpo", {"schedule.steps": 1}, "the noise of one denoising step does not reach the scored"),
    ],
)
def test_completions_that_say_nothing_are_refused(tiny_pipe, method, settings, message):
    with pytest.raises(UsageError, match=message):
        make_resolved(tiny_pipe, method, **{"method.reward": "completion"} | settings)


@pytest.mark.parametrize("rule", ["random:2", "window:2:1"])
def test_moving_random_steps_need_a_normalisation_without_memory(sd3, tmp_path, rule):
    """A buffer would hold the rewards of other steps. Groups compare an epoch with itself."""
    moving = {"schedule.steps": 5, "schedule.sde_steps": rule}
    with pytest.raises(UsageError, match="advantage.normalisation = per-step-prompt would compare"):
        run_of(sd3, tmp_path, "sdpo", **moving)
    run_of(sd3, tmp_path, "sdpo", **moving, **{"advantage.normalisation": "per-step"})
    run_of(sd3, tmp_path, "grpo", **moving)


def test_only_steps_with_a_reward_are_normalised(sd3, tmp_path):
    """Two of five steps are random. Over all images and these steps the advantages have mean 0 and std 1."""
    window = {"schedule.steps": 5, "schedule.sde_steps": "first:2", "advantage.normalisation": "batch"}
    _, trainer = run_of(sd3, tmp_path, "sdpo", **window)
    sampled = trainer._rollout(["cat", "dog"], torch.arange(2))
    experience, _ = trainer.signals.of(sampled, torch.arange(2), 2, trainer._completions(sampled))
    trained = experience.advantages[..., :2]
    assert float(trained.mean()) == pytest.approx(0, abs=1e-4)
    assert float(trained.std(unbiased=False)) == pytest.approx(1, abs=1e-3)
    assert not experience.advantages[..., 2:].any()
