"""The consistency sampler is stock LCMScheduler's, and its deterministic last step is left out of the learning."""

import pytest
import torch
from diffusers import LCMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_bench.errors import UsageError
from sdpo_bench.rollout.schedule import gaussian_log_prob, lint, make_schedule, step_weights

# LCM_Dreamshaper_v7's scheduler file, and a v-prediction one with other scalings.
DREAMSHAPER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "prediction_type": "epsilon",
    "set_alpha_to_one": True,
    "original_inference_steps": 50,
    "timestep_scaling": 10.0,
}
OTHER = DREAMSHAPER | {"prediction_type": "v_prediction", "original_inference_steps": 40, "timestep_scaling": 0.02}


def lcm(steps, config=DREAMSHAPER, **options):
    return make_schedule(config, steps, sampler="lcm", **options)


def test_published_timesteps():
    """As stock LCMScheduler gives them for 50 distillation steps: every 20th of 1000, evenly spaced indices."""
    assert lcm(1).timesteps.tolist() == [999]
    assert lcm(4).timesteps.tolist() == [999, 759, 499, 259]
    assert lcm(4).prev_timesteps.tolist() == [759, 499, 259, -1]
    assert lcm(50).timesteps.tolist() == list(range(999, 0, -20))


def stock_trajectory(config, outputs, start, steps):
    """States, predicted originals and noises of stock ``LCMScheduler.step``."""
    scheduler = LCMScheduler(**config)
    scheduler.set_timesteps(steps)
    generator, recorder = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    states, originals, noises = [start], [], []
    for i, t in enumerate(scheduler.timesteps):
        done = scheduler.step(outputs[i], t, states[-1], generator=generator)
        states.append(done.prev_sample)
        originals.append(done.denoised)
        noises.append(torch.randn(start.shape, generator=recorder) if i < steps - 1 else torch.zeros_like(start))
    return states, originals, noises


@given(
    steps=st.integers(1, 40),
    config=st.sampled_from([DREAMSHAPER, OTHER, OTHER | {"prediction_type": "sample"}]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_every_step_is_stock_diffusers(steps, config, seed):
    torch.manual_seed(seed)
    start, outputs = torch.randn(2, 4, 3, 3), torch.randn(steps, 2, 4, 3, 3)
    states, originals, noises = stock_trajectory(config, outputs, start, steps)
    schedule = lcm(steps, config)
    for i in range(steps):
        step = schedule.denoise(outputs[i], states[i], torch.full((2,), i))
        drawn = step.mean + step.std * noises[i]
        scale = states[i + 1].abs().max() + 1
        assert (drawn - states[i + 1]).abs().max() <= 1e-6 * scale
        assert (step.x0 - originals[i]).abs().max() <= 1e-6 * (originals[i].abs().max() + 1)
        mean = schedule.mean_from_original(originals[i], states[i], torch.full((2,), i))
        assert (mean - step.mean).abs().max() <= 1e-6 * scale


def test_scalings_at_the_boundary():
    """c_skip = 0.25 / ((10 t)^2 + 0.25), c_out = 10 t / sqrt((10 t)^2 + 0.25), by hand at t = 19 (the last of 50)."""
    schedule = lcm(50)
    assert schedule.skip[-1].item() == pytest.approx(0.25 / (190**2 + 0.25), rel=1e-5)
    assert schedule.out[-1].item() == pytest.approx(190 / (190**2 + 0.25) ** 0.5, rel=1e-6)


def test_log_probability_is_the_normal_density():
    """Against torch.distributions; std = sqrt(1 - abar) of the timestep where the step lands."""
    schedule = lcm(4)
    abar = LCMScheduler(**DREAMSHAPER).alphas_cumprod
    assert schedule.std()[:3].tolist() == pytest.approx([(1 - abar[t].item()) ** 0.5 for t in (759, 499, 259)])
    output, sample, value = torch.randn(3, 3, 4, 2, 2, dtype=torch.float64)
    step = schedule.denoise(output, sample, torch.arange(3))
    normal = torch.distributions.Normal(step.mean, step.std.expand_as(step.mean))
    expected = normal.log_prob(value).mean((1, 2, 3))
    assert torch.allclose(gaussian_log_prob(value, step.mean, step.std), expected, rtol=1e-9)


def test_the_deterministic_last_step_has_no_log_probability_no_gradient_and_no_weight():
    schedule = lcm(4)
    lint(schedule, needs_log_prob=True)
    output = torch.randn(4, 4, 2, 2, requires_grad=True)
    step = schedule.denoise(output, torch.randn(4, 4, 2, 2), torch.arange(4))
    assert torch.equal(step.mean[3], step.x0[3])
    log_prob = gaussian_log_prob(step.mean + 0.1, step.mean, step.std)
    (slope,) = torch.autograd.grad(log_prob.sum(), output)
    assert log_prob[3] == 0 and not slope[3].any() and slope[:3].abs().amin(0).max() > 0
    assert torch.isfinite(slope).all()
    assert step_weights(schedule, "official").tolist() == [1, 1, 1, 0]
    weights = step_weights(schedule, "equal-gain").double()
    assert weights[3] == 0 and weights[:3].mean().item() == pytest.approx(1, abs=1e-6)
    heard = (weights * schedule.gains())[:3]
    assert heard.max() / heard.min() == pytest.approx(1, abs=1e-5)


def test_a_floor_makes_the_last_step_a_decision():
    schedule = lcm(4, std_floor=0.05)
    assert schedule.std()[-1].item() == pytest.approx(0.05)
    assert step_weights(schedule, "official").tolist() == [1, 1, 1, 1]
    lint(lcm(1, std_floor=0.05), needs_log_prob=True)


def test_gains_are_the_gradient_of_the_log_probability():
    for prediction in ("epsilon", "v_prediction", "sample"):
        schedule = lcm(5, DREAMSHAPER | {"prediction_type": prediction}, std_floor=0.01)
        output = torch.randn(5, 4, 2, 2, dtype=torch.float64, requires_grad=True)
        noise, index = torch.randn(5, 4, 2, 2, dtype=torch.float64), torch.arange(5)
        step = schedule.denoise(output, torch.randn(5, 4, 2, 2, dtype=torch.float64), index)
        value = step.mean + step.std * noise
        (slope,) = torch.autograd.grad(gaussian_log_prob(value, step.mean, step.std).sum(), output)
        assert torch.allclose(slope.abs(), schedule.gains().view(-1, 1, 1, 1) * noise.abs() / 16, rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "options", "said"),
    [
        (51, {}, "at most as many"),
        (4, {"eta": 0.5}, "no eta"),
        (4, {"spacing": "leading"}, "no spacing"),
        (4, {"prev_timestep": "official"}, "no prev_timestep"),
    ],
)
def test_what_the_sampler_does_not_have_is_refused(steps, options, said):
    with pytest.raises(UsageError, match=said):
        lcm(steps, **options)


def test_one_step_has_nothing_to_learn_from():
    with pytest.raises(UsageError, match="2 or more"):
        lint(lcm(1), needs_log_prob=True)
    lint(lcm(1), needs_log_prob=False)


def test_pixel_space_settings_of_a_scheduler_file_are_overruled_and_recorded():
    for sampler in ("ddim", "lcm"):
        schedule = make_schedule(DREAMSHAPER | {"clip_sample": True, "thresholding": True}, 4, sampler=sampler)
        assert schedule.resolved["clip_sample"] is False
        assert schedule.resolved["overruled"] == {"clip_sample": True, "thresholding": True}
        large = 50 * torch.ones(1, 4, 2, 2)
        assert schedule.denoise(-large, large, torch.tensor([0])).x0.abs().max() > 100
