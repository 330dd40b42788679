"""Schedules at any number of steps, the lint, and the step weights."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_bench.errors import UsageError
from sdpo_bench.rollout.schedule import gaussian_kl, lint, make_schedule, spaced_timesteps, step_weights
from sdpo_bench.settings import ScheduleSettings

SD_TURBO = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def test_published_timesteps():
    """SD-Turbo's, as its scheduler file gives them (trailing)."""
    assert spaced_timesteps(1, 1000, "trailing").tolist() == [999]
    assert spaced_timesteps(4, 1000, "trailing").tolist() == [999, 749, 499, 249]
    assert spaced_timesteps(16, 1000, "trailing").tolist()[:3] == [999, 937, 874]
    fifty = spaced_timesteps(50, 1000, "trailing").tolist()
    assert (fifty[0], fifty[-1], len(fifty)) == (999, 19, 50)


@given(steps=st.integers(1, 1000), spacing=st.sampled_from(["trailing", "leading", "linspace"]))
@settings(max_examples=200, deadline=None)
def test_every_step_count_has_exactly_that_many_descending_timesteps(steps, spacing):
    """Common schedulers return one too many for 62 trailing step counts, 61 first."""
    times = spaced_timesteps(steps, 1000, spacing, offset=0).tolist()
    assert len(times) == steps
    assert times == sorted(times, reverse=True)
    assert len(set(times)) == steps
    assert times[-1] >= 0 and times[0] <= 999


def test_previous_timestep_is_the_next_of_the_list():
    """Where 1000 is not a multiple of T the official rule leaves the list: 8 of 15 steps at T = 16 (trailing)."""
    grid, official = (make_schedule(SD_TURBO, 16, prev_timestep=rule) for rule in ("grid", "official"))
    assert torch.equal(make_schedule(SD_TURBO, 16).prev_timesteps, grid.prev_timesteps)
    assert ScheduleSettings().prev_timestep == "grid"
    assert grid.prev_timesteps.tolist() == [*grid.timesteps.tolist()[1:], 0]
    assert official.prev_timesteps.tolist()[1] == 875
    off = (official.prev_timesteps[:-1] != official.timesteps[1:]).sum().item()
    assert off == 8
    assert lint(grid, needs_log_prob=True) == []
    (warning,) = lint(official, needs_log_prob=True)
    assert warning.startswith("8 of 16 steps")


def test_the_official_rule_takes_whole_steps():
    """1000 // 7 = 142, though 1000 / 7 is nearer to 143; never below 0."""
    schedule = make_schedule(SD_TURBO, 7, prev_timestep="official")
    assert schedule.prev_timesteps.tolist() == [max(t - 142, 0) for t in schedule.timesteps.tolist()]


@pytest.mark.parametrize("steps", [4, 10, 50])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_timesteps_are_those_of_the_stock_scheduler(steps, spacing):
    """At step counts where it has none too many; the offset is that of the scheduler file."""
    from diffusers import DDIMScheduler

    for offset in (0, 1):
        config = SD_TURBO | {"steps_offset": offset}
        stock = DDIMScheduler(**config, timestep_spacing=spacing)
        stock.set_timesteps(steps)
        assert make_schedule(config, steps, spacing=spacing).timesteps.tolist() == stock.timesteps.tolist()


def test_the_last_step_of_sd_turbo_is_stochastic():
    """sigma about 0.029 at eta 1, p = 0."""
    schedule = make_schedule(SD_TURBO, 50)
    assert schedule.prev_timesteps[-1] == 0
    assert schedule.std()[-1].item() == pytest.approx(0.029, abs=0.001)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"spacing": "leading", "config": {"steps_offset": 0}}, 10),
        ({"spacing": "linspace"}, 4),
        ({"eta": 0.0}, 4),
        ({"config": {"set_alpha_to_one": True}}, 4),
        ({"eta": 1e-7}, 4),  # not 0, and its square is nothing beside a float32 latent
        ({}, 700),
    ],
)
def test_deterministic_steps_are_refused_where_log_probabilities_are_needed(options, steps):
    config = SD_TURBO | options.pop("config", {})
    schedule = make_schedule(config, steps, **options)
    with pytest.raises(UsageError, match=r"standard deviation is 0.*std_floor|deterministic.*Use schedule\.eta"):
        lint(schedule, needs_log_prob=True)
    lint(schedule, needs_log_prob=False)


def test_a_schedule_that_repeats_a_timestep_is_refused():
    """The offset moves the first of a thousand steps beyond the last one that the model knows."""
    for needed in (True, False):
        with pytest.raises(UsageError, match="repeats timesteps at 1000 steps"):
            lint(make_schedule(SD_TURBO, 1000, spacing="leading", std_floor=0.01), needs_log_prob=needed)


def test_a_floor_makes_them_usable():
    schedule = make_schedule(SD_TURBO, 700, std_floor=0.01)
    lint(schedule, needs_log_prob=True)
    assert schedule.std().min().item() == pytest.approx(0.01)


@given(steps=st.integers(1, 500), eta=st.floats(0.1, 1), prediction=st.sampled_from(["epsilon", "v_prediction"]))
@settings(max_examples=60, deadline=None)
def test_any_schedule_gives_finite_numbers(steps, eta, prediction):
    config = SD_TURBO | {"prediction_type": prediction, "rescale_betas_zero_snr": prediction == "v_prediction"}
    schedule = make_schedule(config, steps, eta=eta)
    lint(schedule, needs_log_prob=True)
    index = torch.arange(steps)
    step = schedule.denoise(torch.randn(steps, 4, 2, 2), torch.randn(steps, 4, 2, 2), index)
    assert torch.isfinite(step.mean).all()
    assert torch.isfinite(schedule.gains()).all()


def test_divergence_is_that_of_two_normal_distributions():
    """In nats an element; a step that draws nothing counts 0."""
    generator = torch.Generator().manual_seed(0)
    mean, base = (torch.randn(3, 4, 2, 2, generator=generator) for _ in range(2))
    std = torch.tensor([0.5, 2.0, 0.0]).view(3, 1, 1, 1)
    found = gaussian_kl(mean, base, std)
    normal = lambda at: torch.distributions.Normal(at[:2], std[:2])  # noqa: E731
    expected = torch.distributions.kl_divergence(normal(mean), normal(base)).flatten(1).mean(1)
    assert torch.allclose(found[:2], expected) and found[2] == 0


def test_gains_are_the_gradient_of_the_log_probability():
    """d log_prob / d output = gain * unit noise / elements, checked by autograd."""
    from sdpo_bench.rollout.schedule import gaussian_log_prob

    for prediction in ("epsilon", "v_prediction", "sample"):
        schedule = make_schedule(SD_TURBO | {"prediction_type": prediction}, 5)
        output = torch.randn(5, 4, 2, 2, dtype=torch.float64, requires_grad=True)
        noise, index = torch.randn(5, 4, 2, 2, dtype=torch.float64), torch.arange(5)
        step = schedule.denoise(output, torch.randn(5, 4, 2, 2, dtype=torch.float64), index)
        value = step.mean + step.std * noise
        (slope,) = torch.autograd.grad(gaussian_log_prob(value, step.mean, step.std).sum(), output)
        expected = schedule.gains().view(-1, 1, 1, 1) * noise.abs() / 16
        assert torch.allclose(slope.abs(), expected, rtol=1e-5)


def test_equal_gain_weights_make_steps_equally_loud():
    schedule = make_schedule(SD_TURBO | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, 10)
    gains = schedule.gains()
    # The embedded model's schedule: the last step holds 98 % of the squared sum.
    assert (gains[-1] ** 2 / (gains**2).sum()).item() == pytest.approx(0.98, abs=0.01)
    weighted = step_weights(schedule, "equal-gain").double() * gains
    assert weighted.max() / weighted.min() == pytest.approx(1, abs=1e-4)
    assert step_weights(schedule, "equal-gain").mean().item() == pytest.approx(1, abs=1e-5)
    assert step_weights(schedule, "official").tolist() == [1.0] * 10
    assert step_weights(schedule, "skip-last").tolist() == [1.0] * 9 + [0.0]
    assert step_weights(make_schedule(SD_TURBO, 1), "skip-last").tolist() == [1.0]


def test_noise_level_weights_are_in_proportion_to_the_standard_deviation():
    """TempFlow-GRPO: g sqrt(-dt), mean 1 over the steps that draw; Flow-GRPO's SDE by hand at T = 4, shift 1."""
    flow = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
    schedule = make_schedule(flow, 4, sampler="flow", sde="flow", eta=0.7)
    noise = torch.tensor([(1 / 0.25) ** 0.5, (0.75 / 0.25) ** 0.5, 1.0])
    weights = step_weights(schedule, "noise-level")
    assert weights[:3].tolist() == pytest.approx((noise / noise.mean()).tolist(), rel=1e-6)
    assert weights[3] == 0
    ddim = make_schedule(SD_TURBO, 4)
    assert torch.allclose(step_weights(ddim, "noise-level"), ddim.std() / ddim.std().mean())


@pytest.mark.parametrize(("steps", "options"), [(0, {}), (1001, {}), (4, {"eta": -1.0}), (4, {"std_floor": -0.1})])
def test_values_out_of_range(steps, options):
    with pytest.raises(UsageError):
        make_schedule(SD_TURBO, steps, **options)


def test_the_sampler_settings_name_every_family():
    from typing import get_args, get_type_hints

    from sdpo_bench.config.sampler_id import FAMILIES
    from sdpo_bench.rollout.schedule import SAMPLERS
    from sdpo_bench.settings import EvaluationSettings, ScheduleSettings

    for kind in (ScheduleSettings, EvaluationSettings):
        assert set(get_args(get_type_hints(kind)["sampler"])) == set(SAMPLERS) == set(FAMILIES)
