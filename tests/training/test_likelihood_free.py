"""Methods without likelihood: one step is enough, noise has names, an old policy samples, averages are delivered."""

from dataclasses import replace

import pytest
import torch

from factories import LIKELIHOOD_FREE, make_method, make_resolved, make_trainer, sample_groups
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import cost_of_group, cost_of_probe
from sdpo_bench.ledger import Ledger
from sdpo_bench.methods.nft import NFT
from sdpo_bench.rollout.noised_pass import noised_pass
from sdpo_bench.rollout.sampling import Noise
from sdpo_bench.rollout.trailing_weights import TrailingWeights, average_keep


def adapter(trainer):
    return {name: p.detach().clone() for name, p in trainer.policy.lora_parameters().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize("name", LIKELIHOOD_FREE)
def test_it_trains_at_a_single_deterministic_step(tiny_pipe, tmp_path, name):
    resolved = make_resolved(tiny_pipe, name, **{"schedule.steps": 1, "schedule.eta": 0.0, "budget.images": 8})
    trainer = make_trainer(resolved, tmp_path)
    before = adapter(trainer)
    trainer.train()
    assert not equal(before, adapter(trainer))


@pytest.mark.parametrize("name", LIKELIHOOD_FREE)
def test_micro_batches_change_the_gradient_by_rounding_alone(tiny_pipe, tmp_path, name):
    """One optimiser step; AdamW's first moment is a tenth of its gradient."""
    found = []
    for size in (64, 4):
        resolved = make_resolved(tiny_pipe, name, **{"budget.images": 8, "update.max_grad_norm": 1e9})
        trainer = make_trainer(resolved, tmp_path / str(size), micro_batch=size)
        trainer.train()
        assert trainer.ledger.optimiser_steps == 1
        found.append([state["exp_avg"] for state in trainer.updater.optimiser.state.values()])
    largest = max(float(value.abs().max()) for value in found[0])
    assert largest > 0
    for value, other in zip(*found):
        assert torch.allclose(value, other, rtol=0, atol=1e-4 * largest)


def test_step_weights_are_refused_since_they_would_have_no_effect(tiny_pipe):
    with pytest.raises(UsageError, match=r"nft does not use update\.step_weight"):
        resolve(Request(method="nft", model=str(tiny_pipe), overrides={"update.step_weight": "skip-last"}))


def seen_by(policy, groups, *, members=2, same=False, steps=None):
    schedule, trajectories = sample_groups(policy, 3, 4, members)
    method = make_method("dgpo" if same else "nft")
    at = torch.zeros(len(groups), dtype=torch.int64) if steps is None else steps
    return schedule, noised_pass(
        policy,
        schedule,
        trajectories,
        torch.tensor(groups),
        at,
        Ledger(),
        method=method,
        noise=Noise((0, "fresh")),
        names=groups,
        old=TrailingWeights.of(policy.lora_parameters()).weights,
    )


def test_the_noise_of_a_sample_depends_on_its_name_and_not_on_its_batch(tiny_policy):
    _, together = seen_by(tiny_policy, [0, 1, 2])
    _, alone = seen_by(tiny_policy, [1])
    assert torch.allclose(together.noised.original[1], alone.noised.original[0], atol=1e-5)


def test_before_the_first_update_the_old_policy_is_the_new_one_and_the_base_model_another(tiny_policy):
    _, now = seen_by(tiny_policy, [0, 1])
    assert torch.equal(now.noised.original, now.noised.old_original)
    assert not torch.equal(now.noised.original, now.noised.ref_original)  # this policy's adapter is not 0
    assert now.noised.original.requires_grad and not now.noised.old_original.requires_grad


def test_members_share_their_fresh_noise_only_where_a_method_says_so(tiny_policy):
    """The state is (1 - level) clean + level noise up to a scale, so equal noise shows in the difference of states."""
    noise, shape = Noise((0, "fresh")), tiny_policy.latent_shape
    shared = noise.fresh(shape, 3, 2, 1, shared=True)
    own = noise.fresh(shape, 3, 2, 1, shared=False)
    assert torch.equal(shared[0], shared[1]) and torch.equal(shared[0], own[0]) and not torch.equal(own[0], own[1])


def test_noised_states_are_on_the_schedule_s_own_line(tiny_policy):
    """A state divided by (signal + spread) is (1 - level) clean + level noise: level = spread / (signal + spread)."""
    schedule, _ = sample_groups(tiny_policy, 3, 1)
    clean, noise = torch.full((3, 4, 2, 2), 2.0), torch.full((3, 4, 2, 2), -1.0)
    state = schedule.add_noise(clean, noise, torch.arange(3))
    alpha, level = schedule.alpha_t, schedule.noise_levels()
    expected = (1 - level) * 2.0 + level * -1.0
    assert torch.allclose(state[:, 0, 0, 0] / (alpha.sqrt() + (1 - alpha).sqrt()), expected, atol=1e-6)
    assert bool((level > 0).all()) and bool((level <= 1).all()) and level[0] == level.max()


def test_the_policy_that_samples_is_the_old_one(tiny_pipe, tmp_path, monkeypatch):
    """With an old policy that never moves, every epoch samples what the untrained adapter samples."""
    resolved = make_resolved(tiny_pipe, "nft")
    frozen, fresh = make_trainer(resolved, tmp_path / "frozen"), make_trainer(resolved, tmp_path / "fresh")
    monkeypatch.setattr(NFT, "old_decay", lambda self, updates: 1.0)
    frozen.train()
    fresh.state.epoch = frozen.epoch
    moved = [t._sample(torch.arange(2), 2, 2) for t in (frozen, fresh)]
    assert torch.equal(moved[0].latents, moved[1].latents)
    assert not equal(adapter(frozen), adapter(fresh))


def test_the_old_policy_decays_by_optimiser_steps(tiny_pipe, tmp_path, monkeypatch):
    """Two epochs of two steps each: the official code counts gradient steps (train_nft_sd3.py at 24af555, global_step),
    and not epochs."""
    seen = []
    monkeypatch.setattr(NFT, "old_decay", lambda self, updates: seen.append(updates) or 0.0)
    overrides = {"budget.images": 16, "update.minibatch": 1, "update.accumulation": 1}
    trainer = make_trainer(make_resolved(tiny_pipe, "nft", **overrides), tmp_path)
    trainer.train()
    assert trainer.epoch == 2 and seen == [2, 4]


def test_trailing_weights_keep_their_share():
    follower = TrailingWeights.of({"a": torch.tensor([1.0, 0.0])})
    follower.follow({"a": torch.tensor([3.0, 8.0])}, 0.75)
    assert follower.weights["a"].tolist() == [1.5, 2.0]
    assert average_keep(0.9, 1, warmup=True) == pytest.approx(2 / 11)
    assert average_keep(0.9, 1000, warmup=True) == average_keep(0.9, 1, warmup=False) == 0.9


def test_a_run_with_an_average_delivers_it(tiny_pipe, tmp_path):
    """Learning is untouched: the newest weights are those of the same run without an average."""
    plain = make_trainer(make_resolved(tiny_pipe, "sdpo"), tmp_path / "plain")
    averaged = make_trainer(make_resolved(tiny_pipe, "sdpo", **{"ema.decay": 0.5}), tmp_path / "averaged")
    plain.train()
    averaged.train()
    assert equal(adapter(plain), adapter(averaged))
    average = {name: value.clone() for name, value in averaged.updater.followers.ema.weights.items()}
    with averaged.updater.followers.result():
        assert equal(adapter(averaged), average)
    assert equal(adapter(plain), adapter(averaged))
    averaged.updater.followers.deliver()
    assert equal(adapter(averaged), average) and not equal(average, adapter(plain))


FOLLOWING = [
    ("nft", {"method.old_policy": "slow"}),
    ("awm", {"method.old_policy": "slow", "method.old_weight": 1.0}),
    ("dgpo", {"method.old_policy": "slow"}),
    ("dgpo", {"method.old_policy": "slow", "method.reference": "old"}),
    ("sdpo", {"ema.decay": 0.9}),
]


@pytest.mark.parametrize(("name", "extra"), FOLLOWING)
def test_weights_that_follow_survive_a_stop(tiny_pipe, tmp_path, name, extra):
    resolved = make_resolved(tiny_pipe, name, **extra, **{"budget.images": 24})
    whole = make_trainer(resolved, tmp_path / "whole")
    whole.train()
    first = make_trainer(resolved, tmp_path / "parts", checkpoint_every=1)
    wanted, first._groups_left = first._groups_left, lambda groups: 0 if first.epoch == 1 else wanted(groups)
    first.train()
    second = make_trainer(resolved, tmp_path / "parts")
    second.train()
    assert second.epoch == whole.epoch == 3
    assert equal(adapter(second), adapter(whole))
    assert equal(second.updater.followers.named(), whole.updater.followers.named()) and whole.updater.followers.named()


@pytest.mark.parametrize(("name", "extra"), [("nft", {}), ("sdpo", {"ema.decay": 0.9})])
def test_processes_compare_the_weights_that_follow(tiny_pipe, tmp_path, name, extra):
    """An old policy that differs samples other trajectories, and an average that differs is another result."""
    updater = make_trainer(make_resolved(tiny_pipe, name, **extra), tmp_path).updater
    before = updater.fingerprint()
    assert updater.fingerprint() == before
    next(iter(updater.followers.named().values())).flatten()[0] += 1e-3
    assert updater.fingerprint() != before


@pytest.mark.parametrize("name", ["awm", "dgpo"])
def test_a_slow_old_policy_samples(tiny_pipe, tmp_path, monkeypatch, name):
    """After an epoch that it has slept through, it samples what the untrained adapter samples."""
    resolved = make_resolved(tiny_pipe, name, **{"method.old_policy": "slow"})
    asleep, fresh = make_trainer(resolved, tmp_path / "asleep"), make_trainer(resolved, tmp_path / "fresh")
    monkeypatch.setattr(asleep.method, "old_decay", lambda updates: 1.0)
    asleep.train()
    fresh.state.epoch = asleep.epoch
    moved = [t._sample(torch.arange(2), 2, 2) for t in (asleep, fresh)]
    assert torch.equal(moved[0].latents, moved[1].latents)
    assert not equal(adapter(asleep), adapter(fresh))


DGPO_CALLS = [
    ({}, 1, 2),  # with a graph, and the base model
    ({"method.old_policy": "slow"}, 1, 2),  # sampling asks the old policy, the loss does not
    ({"method.reference": "old"}, 1, 2),
    ({"method.clip_range": 0.1}, 1, 3),
    ({"method.clip_range": 0.1, "method.reference": "old"}, 1, 2),
    ({"model.guidance_scale": 3.0}, 2, 2),
    ({"model.guidance_scale": 3.0, "method.guidance": "none"}, 2, 1),
    ({"model.guidance_scale": 3.0, "method.guidance": "none", "method.clip_range": 0.1}, 2, 1.5),
]


@pytest.mark.parametrize(("own", "branches", "asked"), DGPO_CALLS)
def test_the_bill_of_dgpo_is_exact(tiny_pipe, tmp_path, own, branches, asked):
    """Eight images at three steps: 24 calls of sampling a branch. An update asks the models ``asked`` times a branch of
    sampling for each of its 24 noised images."""
    resolved = make_resolved(tiny_pipe, "dgpo", **own, **{"budget.images": 8})
    trainer, calls = make_trainer(resolved, tmp_path), []
    predict = trainer.policy._call
    trainer.policy._call = lambda latents, *rest: calls.append(len(latents)) or predict(latents, *rest)
    trainer.train()
    (row,) = trainer.run.log()
    bill, cost = row["bill"], cost_of_group(resolved)
    probe = cost_of_probe(resolved, 2)
    assert sum(calls) == sum(bill["forward"].values()) == 2 * cost.forward + probe
    assert bill["forward"]["rollout"] == 24 * branches
    assert bill["forward"]["update"] + bill["forward"].get("reference", 0) == 24 * branches * asked
    assert bill["backward"] == 2 * cost.backward == bill["forward"]["update"]


def test_a_loss_without_guidance_sees_the_conditional_prediction_alone(tiny_pipe, tmp_path):
    """With a guidance scale of 3 the guided prediction is another one; without, that of scale 1."""

    def seen(**own):
        resolved = make_resolved(tiny_pipe, "dgpo", **own)
        trainer = make_trainer(resolved, tmp_path / str(len(own)) / own.get("method.guidance", "as sampled"))
        trainer.policy.on_call = None
        trajectories = trainer._sample(torch.arange(2), 2, 2)
        batch = noised_pass(
            trainer.policy,
            trainer.schedule,
            replace(trajectories, latents=torch.ones_like(trajectories.latents)),
            torch.arange(2),
            torch.zeros(2, dtype=torch.int64),
            Ledger(),
            method=trainer.method,
            noise=Noise((0, "fresh")),
            names=[0, 1],
            old=None,
        )
        return batch.noised.original.detach()

    plain = seen()
    guided, unguided = (seen(**{"model.guidance_scale": 3.0, "method.guidance": g}) for g in ("sampling", "none"))
    assert torch.allclose(unguided, plain, atol=1e-5)
    assert (guided - plain).abs().max() > 1e-3


def test_a_loss_without_guidance_is_refused_where_there_is_none(tiny_pipe):
    with pytest.raises(
        UsageError, match=r"dgpo's loss is to leave out guidance, and model\.guidance_scale = 1 has none"
    ):
        make_resolved(tiny_pipe, "dgpo", **{"method.guidance": "none"})


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("awm", {"method.old_policy": "slow"}),
        ("awm", {"method.old_weight": 1.0}),
        ("dgpo", {"method.old_policy": "slow"}),
        ("dgpo", {"method.reference": "old"}),
    ],
)
def test_moving_references_are_part_of_a_run_s_name_and_the_present_ones_are_not(tiny_pipe, name, changed):
    plain, other = make_resolved(tiny_pipe, name), make_resolved(tiny_pipe, name, **changed)
    assert plain.run_id != other.run_id
    assert not {"old_policy", "old_weight", "reference", "guidance"} & set(plain.data["method"]["settings"])


def test_an_average_is_part_of_a_run_s_name_and_its_absence_is_not(tiny_pipe):
    plain, off, on = (
        make_resolved(tiny_pipe, "sdpo", **extra).run_id for extra in ({}, {"ema.decay": 0.0}, {"ema.decay": 0.9})
    )
    assert plain == off != on
    assert "ema" in make_resolved(tiny_pipe, "sdpo").data  # the record says that there is none
