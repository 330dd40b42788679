"""Training: budgets stop exactly, the ledger counts real calls, and a resumed run equals one that never stopped."""

import json
from types import SimpleNamespace

import pytest
import torch

from factories import GRADIENT_METHODS, TRAINED, make_resolved, make_trainer, mostly_slow
from sdpo_bench.errors import RunFailed, UsageError
from sdpo_bench.training import checkpoint


def weights_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.updater.parameters.items()}


def count_calls(monkeypatch, trainer):
    """Rows that really pass through the UNet, and images that really reach the reward."""
    counts = {"rows": 0, "images": 0}
    trainer.policy.denoiser.register_forward_hook(
        lambda m, inputs, output: counts.update(rows=counts["rows"] + len(inputs[0]))
    )
    score = trainer.scorer.reward.__class__.__call__

    def watched(self, images, prompts):
        counts["images"] += len(images)
        return score(self, images, prompts)

    monkeypatch.setattr(trainer.scorer.reward.__class__, "__call__", watched)
    return counts


ONE_STEP, SKIP_LAST = {"update.inner_epochs": 2, "schedule.steps": 1}, {"update.step_weight": "skip-last"}
# Every way of being charged, in every setting that changes the bill.
WAYS = ("sdpo", "ddpo", "sparse_dpo", "dpok")
# Every kind of state: buffers of prompts, a reference, whole trajectories, a critic, rewards asked for in updates.
RESUMED = ("sdpo", "ddpo", "d3po", "sparse_dpo", "tdpo", "draft")


@pytest.mark.parametrize(
    ("name", "extra"),
    mostly_slow(
        [(name, {}) for name in TRAINED]
        + [(name, ONE_STEP) for name in (*WAYS, *GRADIENT_METHODS) if name != "sdpo"]  # which is refused there
        + [(name, SKIP_LAST) for name in WAYS],
        quick=[("sdpo", {}), ("sparse_dpo", {}), ("draft", {}), ("sparse_dpo", ONE_STEP), ("sdpo", SKIP_LAST)],
    ),
)
def test_the_ledger_counts_every_call(tiny_pipe, tmp_path, monkeypatch, name, extra):
    from sdpo_bench.cli.run_plan import plan

    resolved = make_resolved(tiny_pipe, name, **extra)
    trainer = make_trainer(resolved, tmp_path)
    counts = count_calls(monkeypatch, trainer)
    trainer.train()
    bill = trainer.ledger.bill()
    assert sum(bill["forward"].values()) == counts["rows"]
    assert bill["rewards"] == {trainer.scorer.name: counts["images"]}
    assert bill["images"] == 16
    predicted = plan(resolved)["cost_per_epoch"]
    assert 2 * predicted["denoiser_forward"] == counts["rows"]
    assert 2 * predicted["denoiser_backward"] == bill["backward"]
    assert 2 * predicted["reward_calls"] == counts["images"] + bill["reward_backward"] == bill["reward_calls"]
    assert 2 * predicted["optimiser_steps"] == bill["optimiser_steps"]


@pytest.mark.parametrize(
    ("axis", "amount", "used"),
    [("images", 20, 20), ("reward_calls", 47, 45), ("optimiser_steps", 8, 8), ("denoiser_calls", 150, None)],
)
def test_a_budget_stops_exactly_there(tiny_pipe, tmp_path, axis, amount, used):
    """SDPO at T = 3 asks 5 rewards a pair (one first, two last, two anchors): 47 allow nine pairs, 45 calls."""
    trainer = make_trainer(make_resolved(tiny_pipe, "sdpo", **{f"budget.{axis}": amount}), tmp_path)
    trainer.train()
    spent = trainer.ledger.used(axis)
    assert spent <= amount
    if used is None:  # one more pair would not have fitted: 5 sampled and trained forward, 5 backward
        assert amount - spent < 15 + 2 * 5
    else:
        assert spent == used


def test_seconds_stop_a_run(tiny_pipe, tmp_path):
    trainer = make_trainer(make_resolved(tiny_pipe, "ddpo", **{"budget.seconds": 1e-6}), tmp_path)
    trainer.train()
    assert trainer.epoch == 1
    assert trainer.ledger.images == 8 and trainer.ledger.optimiser_steps == 0, "inside the epoch"


def test_seconds_include_the_sampling_of_the_last_epoch(tiny_pipe, tmp_path, monkeypatch):
    """Sampling takes 10 s on this clock and an update none: 25 s end before the third epoch's first update."""
    now = [0.0]
    monkeypatch.setattr("sdpo_bench.training.loop.time", SimpleNamespace(monotonic=lambda: now[0]))
    trainer = make_trainer(make_resolved(tiny_pipe, "ddpo", **{"budget.seconds": 25}), tmp_path)

    def watch(tick):
        if tick.phase == "scoring":
            now[0] += 10

    trainer.watch = watch
    trainer.train()
    steps = [row["bill"]["optimiser_steps"] for row in trainer.run.log()]
    assert steps[1] == 2 * steps[0] > 0
    assert steps[2:] == [steps[1]]


def test_a_budget_below_one_group_is_refused(tiny_pipe, tmp_path):
    with pytest.raises(UsageError, match="less than one prompt group"):
        make_trainer(make_resolved(tiny_pipe, "sdpo", **{"budget.reward_calls": 2}), tmp_path)


class Stop(Exception):
    """A stand-in for a killed process."""


def interrupt_after(trainer, epochs, phase):
    def watch(tick):
        if tick.epoch == epochs and tick.phase == phase:
            raise Stop

    trainer.watch = watch


@pytest.mark.parametrize(
    ("name", "phase"),
    mostly_slow(
        [("sdpo", "sampling"), ("sdpo", "scoring"), *((name, "updating") for name in RESUMED)],
        quick=[("sdpo", "updating"), ("d3po", "updating")],
    ),
)
def test_resumed_equals_never_stopped(tiny_pipe, tmp_path, name, phase):
    """The same bytes of train.jsonl and the same weights, wherever the first attempt ended."""
    resolved = make_resolved(tiny_pipe, name, **{"sample.images_per_epoch": 4, "budget.images": 12})
    whole = make_trainer(resolved, tmp_path / "whole")
    whole.train()
    stopped = make_trainer(resolved, tmp_path / "stopped", checkpoint_every=3)
    interrupt_after(stopped, 2, phase)
    with pytest.raises(Stop):
        stopped.train()
    resumed = make_trainer(resolved, tmp_path / "stopped", checkpoint_every=3)
    resumed.train()
    assert (resumed.run.path / "train.jsonl").read_bytes() == (whole.run.path / "train.jsonl").read_bytes()
    ours, theirs = weights_of(resumed), weights_of(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_resumed_run_compares_with_the_returns_of_epochs_before(tiny_pipe, tmp_path):
    """Of a prompt in every epoch, so that its buffer decides: of many prompts none is met often enough for that."""
    (tmp_path / "one.txt").write_text("cat\n")
    few = {"sample.prompts": str(tmp_path / "one.txt"), "sample.images_per_epoch": 4, "advantage.min_count": 6}
    resolved = make_resolved(tiny_pipe, **few, **{"budget.images": 12})
    whole = make_trainer(resolved, tmp_path / "whole")
    whole.train()
    stopped = make_trainer(resolved, tmp_path / "stopped", checkpoint_every=3)
    interrupt_after(stopped, 2, "scoring")
    with pytest.raises(Stop):
        stopped.train()
    resumed = make_trainer(resolved, tmp_path / "stopped")
    resumed.train()
    assert (resumed.run.path / "train.jsonl").read_bytes() == (whole.run.path / "train.jsonl").read_bytes()
    assert all(torch.equal(p, weights_of(whole)[n]) for n, p in weights_of(resumed).items())


@pytest.mark.slow
def test_a_killed_process_loses_at_most_the_epochs_since_its_checkpoint(tiny_pipe, tmp_path, monkeypatch):
    """As SIGKILL does it: no clean-up runs at all."""
    resolved = make_resolved(tiny_pipe, **{"budget.images": 40})
    whole = make_trainer(resolved, tmp_path / "whole")
    whole.train()
    killed = make_trainer(resolved, tmp_path / "killed", checkpoint_every=2)
    interrupt_after(killed, 3, "updating")
    save = killed.state.save
    monkeypatch.setattr(killed.state, "save", lambda: save() if killed.epoch == 2 else None)
    with pytest.raises(Stop):
        killed.train()
    assert len(killed.run.log()) == 3
    again = make_trainer(resolved, tmp_path / "killed")
    again.train()
    assert [row["epoch"] for row in again.run.log("timing.jsonl")] == [1, 2, 3, 4, 5], "and forgets no other"
    assert (again.run.path / "train.jsonl").read_bytes() == (whole.run.path / "train.jsonl").read_bytes()
    assert all(torch.equal(p, weights_of(whole)[n]) for n, p in weights_of(again).items())


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny_pipe, tmp_path):
    resolved = make_resolved(tiny_pipe, **{"budget.images": 32})
    trainer = make_trainer(resolved, tmp_path, checkpoint_every=1)
    trainer.train()
    newest, _ = checkpoint.latest(trainer.run)
    newest.write_bytes(newest.read_bytes()[:100])
    found, warnings = checkpoint.latest(trainer.run)
    assert found is not None and found != newest
    assert "damaged" in warnings[0]
    before = (trainer.run.path / "train.jsonl").read_bytes()
    make_trainer(resolved, tmp_path).train()
    assert (trainer.run.path / "train.jsonl").read_bytes() == before


def test_a_checkpoint_of_another_model_is_refused(tiny_pipe, tmp_path):
    """One row of weights would be copied to every row without a word."""
    ranks = [make_trainer(make_resolved(tiny_pipe, **{"model.lora_rank": rank}), tmp_path) for rank in (1, 4)]
    path = checkpoint.write(ranks[0].run, *ranks[0].state._snapshot())
    before = weights_of(ranks[1])
    with pytest.raises(UsageError, match=r"does not fit this model: '.*' is missing or of another shape"):
        checkpoint.restore(path, ranks[1].updater, ranks[1].normaliser, ranks[1].scorer.cache)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(ranks[1]).items())


@pytest.mark.slow
def test_micro_batches_do_not_change_a_run(tiny_pipe, tmp_path):
    resolved = make_resolved(tiny_pipe)
    numbers = []
    for size in (64, 3):
        trainer = make_trainer(resolved, tmp_path / str(size), micro_batch=size)
        trainer.train()
        numbers.append((trainer.run.log(), weights_of(trainer)))
    (logs, weights), (other_logs, other_weights) = numbers
    for a, b in zip(logs, other_logs):
        assert a["reward_mean"] == pytest.approx(b["reward_mean"], abs=2e-3)
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    # Adam divides by the gradient's own size, so rounding in a vanishing entry moves it by at most one learning rate.
    assert all((other_weights[n] - w).abs().max() < 4e-3 for n, w in weights.items())
    assert sum(float((other_weights[n] - w).abs().mean()) for n, w in weights.items()) / len(weights) < 1e-4


def test_methods_meet_the_same_prompts_and_initial_noise(tiny_pipe, tmp_path):
    seen = {}
    for name in ("sdpo", "d3po", "sparse_dpo", "ddpo"):
        trainer = make_trainer(make_resolved(tiny_pipe, name), tmp_path)
        groups = 8 // trainer.method.members
        trajectories = trainer._sample(torch.arange(groups), groups, groups)
        seen[name] = trajectories.prompts, trajectories.latents[:, 0, 0]
    for name in ("d3po", "sparse_dpo", "ddpo"):
        assert seen[name][0][:4] == seen["sdpo"][0]
        assert torch.equal(seen[name][1][:4], seen["sdpo"][1])


def test_every_epoch_logs_what_a_person_needs(tiny_pipe, tmp_path):
    expected = {
        "epoch",
        "groups",
        "reward_mean",
        "reward_std",
        "reward_by_query",
        "dense_reward_min",
        "dense_reward_max",
        "ratio_at_zero_update",
        "ratio_mean",
        "clip_fraction",
        "clip_fraction_at_zero_update",
        "approx_kl",
        "loss",
        "grad_norm",
        "gradient_share_by_step",
        "kl_to_base",
        "pictures",
        "bill",
        "advantage_mean",
        "advantage_std",
    }
    trainer = make_trainer(make_resolved(tiny_pipe, "sdpo"), tmp_path)
    trainer.train()
    rows = trainer.run.log()
    assert expected <= set(rows[0])
    assert set(rows[0]["reward_by_query"]) == {"first", "last", "anchor"}
    assert sum(rows[0]["gradient_share_by_step"]) == pytest.approx(1, abs=1e-5)
    assert rows[0]["kl_to_base"] == pytest.approx(0, abs=1e-8), "a fresh adapter is the base model"
    assert rows[1]["kl_to_base"] > 0
    assert all(row["clip_fraction"] > 0 == row["clip_fraction_at_zero_update"] for row in rows)
    assert {"seconds", "images_per_second"} <= set(trainer.run.log("timing.jsonl")[0])
    preference = make_trainer(make_resolved(tiny_pipe, "d3po"), tmp_path)
    preference.train()
    assert {"margin", "implicit_accuracy"} <= set(preference.run.log()[0])


@pytest.mark.parametrize("what", ["nan", "shape"])
def test_a_broken_reward_fails_the_run_and_keeps_the_last_good_checkpoint(tiny_pipe, tmp_path, monkeypatch, what):
    trainer = make_trainer(make_resolved(tiny_pipe, **{"budget.images": 40}), tmp_path)
    answer = trainer.scorer.reward.__class__.__call__

    def broken(self, images, prompts):
        good = answer(self, images, prompts)
        if trainer.epoch < 2:
            return good
        return good * float("nan") if what == "nan" else good[:, None]

    monkeypatch.setattr(trainer.scorer.reward.__class__, "__call__", broken)
    with pytest.raises(RunFailed, match="jpeg-incompressibility"):
        trainer.train()
    path, _ = checkpoint.latest(trainer.run)
    assert checkpoint.read(path)[0]["epoch"] == 2
    assert len(trainer.run.log()) == 2


def test_a_diverging_policy_stops_with_a_clear_message(tiny_pipe, tmp_path):
    trainer = make_trainer(make_resolved(tiny_pipe, **{"budget.images": 400, "update.lr": 1e6}), tmp_path)
    with pytest.raises(RunFailed, match=r"NaN|gradient norm|loss is"):
        trainer.train()


def test_train_log_is_plain_json_without_times(tiny_pipe, tmp_path):
    trainer = make_trainer(make_resolved(tiny_pipe), tmp_path)
    trainer.train()
    text = (trainer.run.path / "train.jsonl").read_text()
    assert "seconds" not in text
    assert [json.loads(line)["epoch"] for line in text.splitlines()] == [1, 2]
