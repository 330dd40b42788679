"""Training on a flow-matching schedule: ratio 1, what is trained and billed, moving windows, resume, dense rewards.

The denoiser is the tiny pipeline's with a flow-matching scheduler: what its output means is the schedule's affair.
"""

import json
import shutil

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from policies import fresh_policy

from factories import GRADIENT_METHODS, LOSS_METHODS, make_method, make_resolved, mostly_slow
from sdpo_bench.estimates.time_estimate import cost_of_group, cost_of_probe, optimiser_steps, training_work
from sdpo_bench.rollout.base_log_probs import base_statistics
from sdpo_bench.rollout.sampling import Noise, rollout
from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.runs.run_folder import RunFolder
from sdpo_bench.scoring.dense_rewards import choose_queries
from sdpo_bench.scoring.make_scorers import make_scorer
from sdpo_bench.scoring.scorer import supervise
from sdpo_bench.seeds import seed_for
from sdpo_bench.settings import ModelSettings, Runtime
from sdpo_bench.training.loop import Trainer, run_context

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}

RATIO_GAP = 1e-6
"""Most that a ratio may be from 1 before the first update: rounding in float32 (1.2e-7 is the spacing of numbers at 1).
States stored in half precision give 4e-5, more than the clip range of Flow-GRPO-Fast, 1e-5."""


@pytest.fixture
def flow_pipe(tiny_pipe, tmp_path):
    """A folder whose files are those of a flow-matching model."""
    folder = tmp_path / "flow-pipe"
    shutil.copytree(tiny_pipe, folder)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(EULER))
    return folder


@pytest.fixture
def flow_policy(tiny_pipe):
    def make(lora_seed=1):
        policy = fresh_policy(ModelSettings(name=str(tiny_pipe)), lora_seed)
        policy.pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(EULER)
        return policy

    return make


@pytest.fixture
def flow_trainer(flow_pipe, flow_policy, tmp_path):
    """A trainer as ``factories.make_trainer`` makes it, on a policy with a flow-matching scheduler."""

    def make(method="sdpo", out="out", **overrides):
        resolved = make_resolved(flow_pipe, method, **{"schedule.steps": 4} | overrides)
        config = resolved.config
        run = RunFolder(tmp_path / out / "runs" / resolved.run_id)
        run.create(resolved.record)
        policy = flow_policy(seed_for(config.seed, "lora"))
        runtime = Runtime(out=tmp_path / out, device="cpu", checkpoint_every=1)
        context = run_context(config, runtime, policy, make_method(config.method.name, **config.method.settings))
        reward = make_scorer(config.reward.name, config.reward.settings, "cpu").reward
        scorer = supervise(config.reward.name, reward, context.ledger)
        return resolved, Trainer(context, config, run, scorer)

    return make


def calls_by_time(policy):
    """Denoiser calls with a gradient, by timestep."""
    found = []
    predict = policy.predict

    def recorded(latents, timesteps, conditioning):
        output = predict(latents, timesteps, conditioning)
        if output.requires_grad:
            found.extend(timesteps.tolist())
        return output

    policy.predict = recorded
    return found


@pytest.mark.parametrize("method", mostly_slow([(name,) for name in LOSS_METHODS], [("sdpo",), ("ddpo",)]))
def test_an_epoch_starts_at_ratio_1_and_is_billed_as_planned(flow_trainer, method):
    """With the last step, which is never trained, left out of updates and of the bill."""
    resolved, trainer = flow_trainer(method, **{"budget.images": 8})
    found = calls_by_time(trainer.policy)
    trainer.train()
    (row,) = trainer.run.log()
    assert row["ratio_at_zero_update"] < RATIO_GAP
    times = trainer.schedule.timesteps.tolist()
    assert set(found) == set(times[:3])
    groups = 8 // trainer.method.members
    cost, bill = cost_of_group(resolved), row["bill"]
    assert bill["backward"] == len(found) == groups * cost.backward
    assert sum(bill["forward"].values()) == groups * cost.forward + cost_of_probe(resolved, groups)
    assert bill["optimiser_steps"] == optimiser_steps(resolved.config, trainer.method, groups)


def test_the_ratio_is_exactly_1_where_the_same_states_are_scored_again(flow_policy):
    """Log-probabilities belong to the stored latents, so nothing is lost between sampling and scoring."""
    policy = flow_policy()
    for sde in ("cps", "flow", "dance"):
        schedule = make_schedule(EULER, 4, sampler="flow", sde=sde, eta=0.7)
        sampled = rollout(policy, schedule, ["cat"] * 2, Noise((0, "test")), groups=range(2), members=2)
        assert sampled.latents.dtype == torch.float32
        with torch.no_grad():
            for i in range(4):
                before, after = (sampled.latents[:, :, k].flatten(0, 1) for k in (i, i + 1))
                rows = torch.arange(2).repeat_interleave(2)
                times = schedule.timesteps[i].expand(4)
                output = policy.predict(before, times, sampled.conditioning[rows])
                again = schedule.log_prob(after, schedule.denoise(output, before, torch.full((4,), i)))
                assert torch.equal(again, sampled.log_probs[:, :, i].flatten())


def test_the_base_model_is_at_distance_0_from_itself(flow_policy):
    """The sampling policy's mean is recovered from predicted originals, of every rule; a fresh adapter is the base."""
    policy = flow_policy()
    for sde in ("cps", "flow", "dance"):
        schedule = make_schedule(EULER, 4, sampler="flow", sde=sde, eta=0.7)
        sampled = rollout(policy, schedule, ["cat"] * 2, Noise((0, "test")), groups=range(2), members=2)
        with policy.reference():
            log_probs, kl = base_statistics(policy, schedule, sampled, range(2), 64)
        assert kl[..., :-1].abs().max() < 1e-9 and kl[..., -1].isnan().all()  # the last step draws no noise
        assert torch.allclose(log_probs, sampled.log_probs, atol=1e-5)


@pytest.mark.parametrize(("method", "steps", "sde"), [("nft", 1, "cps"), ("draft", 4, "ode"), ("nft", 4, "cps")])
def test_where_no_step_draws_noise_there_is_no_distance_to_the_base(flow_trainer, method, steps, sde):
    """A distance of 0, however far the policy has moved, would say that it is the base model."""
    schedule = {"schedule.steps": steps, "schedule.sde": sde}
    _, trainer = flow_trainer(method, **schedule, **{"reward.name": "emoji-align", "budget.images": 16})
    trainer.train()
    found = [row.get("kl_to_base") for row in trainer.run.log()]
    assert (found[-1] > 0) if (steps, sde) == (4, "cps") else (set(found) == {None})


@pytest.mark.parametrize("rule", ["first:2", "random:2", "random:2:3", "window:2:1"])
def test_only_the_window_is_trained_and_billed(flow_trainer, rule):
    """Three epochs of GRPO without shared noise: 2 of 5 steps each."""
    overrides = {"schedule.steps": 5, "schedule.sde_steps": rule, "budget.images": 24}
    resolved, trainer = flow_trainer("ddpo", **overrides)
    found, windows = calls_by_time(trainer.policy), []
    for epoch in range(3):
        trainer.limit = type(trainer.limit)("images", 8 * (epoch + 1))
        trainer.train()
        trainer.policy.on_call = None
        times = trainer.schedule.timesteps.tolist()
        windows.append(sorted({times.index(t) for t in found}))
        assert len(found) == 8 * 2 == trainer.run.log()[-1]["bill"]["backward"] - 16 * epoch
        assert cost_of_group(resolved, epoch).backward == 2
        found.clear()
    expected = {"first:2": [[0, 1]] * 3, "window:2:1": [[0, 1], [1, 2], [2, 3]]}
    assert all(b - a == 1 and b < 4 for a, b in windows)
    if rule in expected:
        assert windows == expected[rule]
    else:
        places = 2 if rule == "random:2:3" else 3
        assert windows == [[(s := seed_for(0, "sde-steps", e) % places), s + 1] for e in range(3)]


@pytest.mark.parametrize("rule", ["random:2:3", "window:2:1"])
def test_a_moving_window_is_billed_as_planned_where_a_group_shares_its_start(flow_trainer, rule):
    """GRPO, groups of 4: the window with step 0 costs 1 + 4 backward calls a group, the others 4 + 4."""
    settings = {"method.group_size": 4, "method.shared_noise": True, "update.minibatch": 2}
    overrides = {"schedule.steps": 5, "schedule.sde_steps": rule, "budget.images": 40}
    resolved, trainer = flow_trainer("grpo", **settings, **overrides)
    found = calls_by_time(trainer.policy)
    trainer.train()
    bills = [row["bill"] for row in trainer.run.log()]
    forward, backward, planned = [0], [0], []
    for epoch, bill in enumerate(bills):
        cost = cost_of_group(resolved, epoch)
        planned.append(cost.backward)
        forward.append(forward[-1] + 2 * cost.forward + cost_of_probe(resolved, 2))
        backward.append(backward[-1] + 2 * cost.backward)
        assert (sum(bill["forward"].values()), bill["backward"]) == (forward[-1], backward[-1])
    assert len(found) == backward[-1]
    assert set(planned) == {5, 8} and len(planned) == 5
    work = training_work(resolved)
    assert (work.forward, work.backward) == (forward[-1], backward[-1])


@pytest.mark.parametrize("rule", ["random:2", "random:2:3", "window:2:1"])
def test_a_resumed_run_goes_on_exactly(flow_trainer, rule):
    overrides = {"schedule.steps": 5, "schedule.sde_steps": rule, "budget.images": 24}
    _, whole = flow_trainer(out="whole", **overrides)
    whole.train()
    _, first = flow_trainer(out="parts", **overrides)
    first.limit = type(first.limit)("images", 8)
    first.train()
    _, second = flow_trainer(out="parts", **overrides)
    second.train()
    assert second.epoch == whole.epoch == 3
    ours, theirs = second.policy.lora_parameters(), whole.policy.lora_parameters()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert second.run.log() == whole.run.log()


@pytest.mark.parametrize(("method", "mode"), [("sdpo", "predicted"), ("sdpo_full", "full"), ("sdpo_sparse", "sparse")])
def test_dense_rewards_of_every_mode(flow_trainer, method, mode):
    """Predicted originals x - sigma v: what is queried and predicted works as on any schedule."""
    resolved, trainer = flow_trainer(method, **{"budget.images": 8})
    assert trainer.method.reward_mode == mode
    trainer.train()
    (row,) = trainer.run.log()
    assert row["bill"]["reward_calls"] == 4 * cost_of_group(resolved).rewards
    assert row["ratio_at_zero_update"] < RATIO_GAP


def test_predicted_originals_are_the_latents_minus_sigma_times_the_velocity(flow_policy):
    policy = flow_policy()
    schedule = make_schedule(EULER, 4, sampler="flow", eta=0.7)
    sampled = rollout(policy, schedule, ["cat"], Noise((0, "test")), groups=range(1), members=2)
    with torch.no_grad():
        for i in range(4):
            x = sampled.latents[0, :, i]
            rows = torch.zeros(2, dtype=torch.int64)
            velocity = policy.predict(x, schedule.timesteps[i].expand(2), sampled.conditioning[rows])
            assert torch.allclose(sampled.x0[0, :, i], x - schedule.sigmas[i] * velocity, atol=1e-6)
    assert torch.equal(sampled.x0[:, :, -1], sampled.latents[:, :, -1])
    assert choose_queries(sampled.x0, "predicted").steps.shape == (1, 2, 3)


@pytest.mark.parametrize("settings", [{"schedule.sde": "ode"}, {"schedule.steps": 1}, {"schedule.eta": 0}], ids=str)
@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_a_method_that_follows_the_gradient_trains_on_the_ode(flow_trainer, method, settings):
    """Also with a single step, where no method with log-probabilities can."""
    _, trainer = flow_trainer(method, **{"schedule.steps": 4, "budget.images": 8} | settings)
    before = {name: p.detach().clone() for name, p in trainer.policy.lora_parameters().items()}
    trainer.train()
    assert any(not torch.equal(p, before[name]) for name, p in trainer.policy.lora_parameters().items())


def test_refl_and_draft_are_one_algorithm_where_the_last_step_draws_nothing(flow_trainer):
    """Both differentiate the last step; its predicted original is the sample."""
    found = []
    for method, own in (("refl", {"method.window": 0.25}), ("draft", {"method.steps": 1})):
        _, trainer = flow_trainer(method, out=method, **{"schedule.steps": 4, "budget.images": 16} | own)
        trainer.train()
        found.append({name: p.detach().clone() for name, p in trainer.policy.lora_parameters().items()})
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name])
