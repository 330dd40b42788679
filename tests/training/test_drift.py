"""Drift of a step from the policy that sampled: its value, its gradient, no cost, and runs of GRPO that read it."""

import pytest
import torch

from factories import make_resolved, make_trainer, sample_groups
from sdpo_bench.config.resolve import Request, resolve
from sdpo_bench.errors import UsageError
from sdpo_bench.estimates.time_estimate import cost_of_group, cost_of_probe
from sdpo_bench.ledger import Ledger
from sdpo_bench.rollout.replay_step import step_pass

GUARD, MASK = {"method.ratio": "guard"}, {"method.divergence_mask": 1e-5, "method.clip_range": 0.0}


def test_drift_is_the_kl_to_the_step_that_was_sampled(tiny_policy):
    """0 where nothing has moved; then equal to the KL of the means themselves, with its gradient."""
    schedule, sampled = sample_groups(tiny_policy, 3, 2)
    groups, steps = torch.arange(2), torch.tensor([1, 2])
    found = step_pass(tiny_policy, schedule, sampled, groups, steps, Ledger(), with_kl=False, with_drift=True)
    assert found.drift.abs().max() < 1e-9
    old = {}
    for parameter in tiny_policy.lora_parameters().values():
        old[parameter] = parameter.data
        parameter.data = parameter.data + 0.05
    moved = step_pass(tiny_policy, schedule, sampled, groups, steps, Ledger(), with_kl=True, with_drift=True)
    # log-ratio + drift = mean of z d / std: what is left has the square of the noise and no bias.
    assert moved.drift.min() > 1e-6 and moved.drift.requires_grad
    mean = lambda p: schedule.denoise(p.output, before, steps.repeat_interleave(2)).mean  # noqa: E731
    before = torch.stack([sampled.latents[g, :, s] for g, s in zip(groups, steps)]).flatten(0, 1)
    gap = (mean(moved) - mean(found)).square().flatten(1).mean(1).view(2, 2)
    assert torch.allclose(moved.drift, gap / (2 * schedule.std()[steps].view(2, 1) ** 2), rtol=1e-3)
    (slope,) = torch.autograd.grad(moved.drift.sum(), next(iter(old)))
    assert slope.abs().max() > 0


@pytest.mark.parametrize("settings", [GUARD, MASK], ids=["guard", "mask"])
def test_a_run_reads_the_drift_at_no_cost(tiny_pipe, tmp_path, settings):
    resolved = make_resolved(tiny_pipe, "grpo", **settings, **{"budget.images": 8, "update.inner_epochs": 2})
    trainer = make_trainer(resolved, tmp_path)
    trainer.train()
    (row,) = trainer.run.log()
    assert row["ratio_at_zero_update"] < 1e-4
    assert sum(row["bill"]["forward"].values()) == 2 * cost_of_group(resolved).forward + cost_of_probe(resolved, 2)
    plain = make_resolved(tiny_pipe, "grpo", **{"budget.images": 8, "update.inner_epochs": 2})
    assert cost_of_group(plain) == cost_of_group(resolved)
    assert ("masked_fraction" in row) == (settings is MASK)


def test_what_was_added_later_leaves_ids_and_records_of_plain_runs_alone(tiny_pipe):
    """A default is no part of a record, whether it is typed or not; another value is."""
    plain, typed = make_resolved(tiny_pipe, "grpo"), make_resolved(tiny_pipe, "grpo", **{"method.ratio": "plain"})
    assert plain.run_id == typed.run_id
    assert "ratio" not in plain.record["config"]["method"]["settings"]
    assert "sigmas" not in plain.record["config"]["eval"]
    guarded = make_resolved(tiny_pipe, "grpo", **GUARD)
    assert guarded.run_id != plain.run_id
    assert guarded.record["config"]["method"]["settings"]["ratio"] == "guard"


def test_the_official_form_of_cps_has_no_drift():
    overrides = {"schedule.cps_log_prob": "official", **GUARD}
    request = Request(method="grpo", model="sd3.5-medium", reward="jpeg-compressibility", overrides=overrides)
    with pytest.raises(UsageError, match="in units of their noise"):
        resolve(request)
