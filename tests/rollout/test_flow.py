"""Sampling of flow-matching models: diffusers' sigmas, three stochastic rules, and which steps are trained."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps

from sdpo_bench.config.training_schedule import schedule_options
from sdpo_bench.errors import UsageError
from sdpo_bench.rollout.schedule import gaussian_kl, gaussian_log_prob, lint, make_schedule, step_weights
from sdpo_bench.settings import ScheduleSettings

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
STATIC = EULER | {"shift": 3.0}
# FLUX.1-dev's scheduler file, and Qwen-Image's.
FLUX = EULER | {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "use_dynamic_shifting": True,
    "shift": 3.0,
}
QWEN = FLUX | {"max_image_seq_len": 8192, "max_shift": 0.9, "shift": 1.0, "shift_terminal": 0.02}


def flow(steps, config=STATIC, **options):
    return make_schedule(config, steps, sampler="flow", **{"eta": 0.7} | options)


def stock(config):
    known = {key: value for key, value in config.items() if key not in ("_class_name", "image_seq_len")}
    return FlowMatchEulerDiscreteScheduler(**known)


def explicit(steps):
    """Sigmas that FLUX's pipeline gives to its scheduler."""
    return np.linspace(1.0, 1 / steps, steps)


def states(steps, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(steps, 4, 3, 3, dtype=dtype, generator=generator) for _ in range(3)]


def tokens(side):
    """Image tokens of a square picture: patches of 2x2 latents, each latent 8x8 pixels."""
    return (side // 16) ** 2


COUNTS = (*range(1, 51), 100, 1000)
SPACINGS = ("trailing", "linspace", "list")
SCHEDULERS = {f"shift {shift:g}": EULER | {"shift": shift} for shift in (1.0, 3.0, 6.0)}
# At these shifts float32 gives a first sigma that is one or two units in the last place below 1.
ROUNDED = {f"shift {shift:g}": EULER | {"shift": shift} for shift in (1.18, 1.66, 2.07, 2.32, 2.57, 4.14)}
SCHEDULERS |= ROUNDED
SCHEDULERS |= {"static stretched": STATIC | {"shift_terminal": 0.1}}
SCHEDULERS |= {
    f"{name} at {side} pixels": config | {"image_seq_len": tokens(side)}
    for name, config in {"FLUX": FLUX, "Qwen-Image": QWEN, "linear": FLUX | {"time_shift_type": "linear"}}.items()
    for side in (256, 512, 1024, 1328)
}


def of_pipeline(config, steps, spacing):
    """What a pipeline of diffusers gets from its scheduler: by an explicit list (FLUX), by a number (SD3), by a list of
    the user's."""
    keys = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    scheduler, dynamic = stock(config), config.get("use_dynamic_shifting")
    shift = {"mu": calculate_shift(config["image_seq_len"], *(config[key] for key in keys))} if dynamic else {}
    given_sigmas = {"trailing": explicit(steps), "list": uneven(steps)}.get(spacing)
    timesteps, count = retrieve_timesteps(scheduler, steps, sigmas=given_sigmas, **shift)
    return timesteps, scheduler.sigmas, shift.get("mu"), count


def uneven(steps):
    """A descending list that no rule of the scheduler gives."""
    return [1.0, *(0.9 * (1 - i / steps) ** 1.5 for i in range(1, steps))]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_sigmas_and_timesteps_are_those_of_the_pipeline(name):
    """To the last bit. Two steps are the least that a stretched schedule has."""
    config, compared = SCHEDULERS[name], 0
    for spacing in SPACINGS:
        for steps in COUNTS[1:] if "shift_terminal" in config else COUNTS:
            timesteps, sigmas, shift, count = of_pipeline(config, steps, spacing)
            options = {"sigmas": tuple(uneven(steps))} if spacing == "list" else {"spacing": spacing}
            schedule = flow(steps, config, **options)
            assert schedule.num_steps == count == steps
            assert torch.equal(schedule.sigmas, sigmas), (spacing, steps)
            assert torch.equal(schedule.timesteps, timesteps), (spacing, steps)
            assert schedule.timesteps.dtype == schedule.sigmas.dtype == torch.float32
            assert schedule.sigmas[-1] == 0 and schedule.resolved.get("mu") == shift
            compared += 1
    assert compared >= 3 * 51


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("name", ["shift 3", "FLUX at 1024 pixels"])
def test_sigmas_are_those_of_the_pipeline_at_every_step_count(name, spacing):
    """A static and a dynamic shift, to the last bit."""
    config = SCHEDULERS[name]
    for steps in range(1, 1001):
        timesteps, sigmas, _, _ = of_pipeline(config, steps, spacing)
        schedule = flow(steps, config, spacing=spacing)
        assert torch.equal(schedule.sigmas, sigmas) and torch.equal(schedule.timesteps, timesteps), steps


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_first_sigma_is_1_unless_a_list_says_otherwise(name):
    """Sampling begins with noise alone: every shift leaves 1 where it is, but for rounding of up to 2^-23."""
    config, rounding = SCHEDULERS[name], 2 * 2**-24 if name in ROUNDED else 0.0
    for spacing in ("trailing", "linspace"):
        for steps in COUNTS[1:] if "shift_terminal" in config else COUNTS:
            schedule = flow(steps, config, spacing=spacing)
            assert 1 - rounding <= schedule.sigmas[0] <= 1 and schedule.noise_levels()[0] == schedule.sigmas[0]
            assert 1000 * (1 - rounding) <= schedule.timesteps[0] <= 1000
            assert (schedule.sigmas.diff() < 0).all()


@pytest.mark.parametrize(
    ("config", "given_sigmas", "expected"),
    [
        # Static: 3 s / (1 + 2 s).
        (STATIC, (1.0, 0.5, 0.25), (1.0, 0.75, 0.5)),
        # By image size: 4096 tokens are FLUX's largest, so mu = 1.15; e^mu / (e^mu + 1 / s - 1).
        (FLUX | {"image_seq_len": 4096}, (1.0, 0.5, 0.2), (1.0, 0.759511, 0.4412)),
        # Stretched: shift 1 leaves 1, .6, .2; 1 - s = 0, .4, .8 times (1 - .1) / .8.
        (EULER | {"shift_terminal": 0.1}, (1.0, 0.6, 0.2), (1.0, 0.55, 0.1)),
    ],
)
def test_shifts_by_hand(config, given_sigmas, expected):
    assert flow(3, config, sigmas=given_sigmas).sigmas.tolist() == pytest.approx([*expected, 0.0], abs=1e-6)


def test_published_sigmas():
    """FLUX.1-schnell in four steps (shift 1) and Stable Diffusion 3 in four (shift 3, applied twice)."""
    assert flow(4, EULER | {"shift": 1.0}).sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    published = [1.0, 0.8577, 0.6022, 0.0089, 0.0]
    assert flow(4, spacing="linspace").sigmas.tolist() == pytest.approx(published, abs=1e-4)


def test_the_ode_is_the_step_of_diffusers_to_the_last_bit():
    for options in (
        {"sde": "ode"},
        {"sde": "cps", "eta": 0.0},
        {"sde": "flow", "eta": 0.0},
        {"sde": "dance", "eta": 0.0},
    ):
        scheduler, schedule = stock(STATIC), flow(5, **options)
        scheduler.set_timesteps(sigmas=explicit(5))
        sample, outputs, _ = states(5, torch.float32)
        current = sample[:1]
        for i, t in enumerate(scheduler.timesteps):
            theirs = scheduler.step(outputs[i : i + 1], t, current).prev_sample
            step = schedule.denoise(outputs[i : i + 1], current, torch.tensor([i]))
            assert torch.equal(step.mean, theirs) and step.std.item() == 0
            current = theirs


def test_cps_at_eta_1_throws_fresh_noise_on_the_prediction():
    """Mean (1 - s') x0^ and standard deviation s': the sampler of a consistency model."""
    schedule = flow(4, eta=1.0)
    sample, output, _ = states(4)
    step = schedule.denoise(output, sample, torch.arange(4))
    sigma, after = schedule.sigmas[:-1].double(), schedule.sigmas[1:].double()
    column = lambda values: values.view(-1, 1, 1, 1)  # noqa: E731
    original = sample - column(sigma) * output
    assert torch.allclose(step.x0, original, rtol=1e-12)
    assert torch.allclose(step.mean, (1 - column(after)) * original, atol=1e-12)
    assert torch.allclose(step.std.flatten(), after, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7, 1.0])
def test_cps_stays_at_the_noise_level_of_the_next_step(eta):
    """Coefficients of x0 and of independent noise: 1 - s' and s', whatever eta (Flow-CPS, the paper's claim)."""
    schedule = flow(6, eta=eta)
    for i in range(5):
        s, after = schedule.sigmas[i].double(), schedule.sigmas[i + 1].double()
        # x = (1 - s) x0 + s eps with a perfect model, v = eps - x0: of x0 = 1, eps = 0 and of x0 = 0, eps = 1.
        of_signal, of_noise = (
            schedule.denoise(torch.full((1, 1, 1, 1), v), torch.full((1, 1, 1, 1), x), torch.tensor([i]))
            for v, x in ((-1.0, float(1 - s)), (1.0, float(s)))
        )
        assert of_signal.mean.item() == pytest.approx(float(1 - after), abs=1e-6)
        spread = math.hypot(of_noise.mean.item(), of_noise.std.item())
        assert spread == pytest.approx(float(after), abs=1e-6)


def test_the_flow_rule_by_hand():
    """Shift 1, T = 4, eta 0.7: sigmas 1, .75, .5, .25. At s = 1 the denominator takes sigmas[1] = .75."""
    schedule = flow(4, EULER, sde="flow")
    scales = [0.7 * (1 / 0.25) ** 0.5, 0.7 * (0.75 / 0.25) ** 0.5, 0.7 * (0.5 / 0.5) ** 0.5]
    assert schedule.std().tolist() == pytest.approx([*(a * 0.5 for a in scales), 0.0], rel=1e-6)
    x, v = 2.0, -1.0
    a = scales[1]
    mean = x * (1 + a**2 * -0.25 / 1.5) + v * (1 + a**2 * 0.25 / 1.5) * -0.25
    step = schedule.denoise(torch.full((1, 1, 1, 1), v), torch.full((1, 1, 1, 1), x), torch.tensor([1]))
    assert step.mean.item() == pytest.approx(mean, rel=1e-6)
    assert flow(4, EULER, sde="dance").std().tolist() == pytest.approx([0.35, 0.35, 0.35, 0.0], rel=1e-6)


@pytest.mark.parametrize("name", ROUNDED)
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_the_flow_rule_takes_a_first_sigma_just_below_1_for_1(name, spacing):
    """At shift 2.07 the first of four sigmas is 1 - 2^-23. s / (1 - s) would be 8.4e6 and a 2,000;
    with sigmas[1] = .86 in the denominator it is 0.7 / sqrt(1 - .86) = 1.9."""
    schedule = flow(4, ROUNDED[name], sde="flow", spacing=spacing)
    first, second = schedule.sigmas[:2].double().tolist()
    assert 1 - 2 * 2**-24 <= first <= 1
    a, length = 0.7 / math.sqrt(1 - second), 1 - second
    assert schedule.std()[0].item() == pytest.approx(a * math.sqrt(length), rel=1e-6)
    step = schedule.denoise(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), torch.tensor([0]))
    assert step.mean.item() == pytest.approx(1 - a**2 * length / 2, rel=1e-6)


@pytest.mark.parametrize("sde", ["cps", "flow", "dance", "ode"])
def test_the_mean_follows_from_the_predicted_original(sde):
    schedule = flow(6, sde=sde)
    sample, output, _ = states(6)
    step = schedule.denoise(output, sample, torch.arange(6))
    again = schedule.mean_from_original(step.x0, sample, torch.arange(6))
    assert torch.allclose(again, step.mean, atol=1e-10)


@pytest.mark.parametrize("sde", ["cps", "flow", "dance"])
def test_the_log_probability_is_the_normal_density_and_the_last_step_has_none(sde):
    schedule = flow(5, sde=sde)
    sample, output, value = states(5)
    output.requires_grad_()
    step = schedule.denoise(output, sample, torch.arange(5))
    log_prob = schedule.log_prob(value, step)
    normal = torch.distributions.Normal(step.mean[:4], step.std[:4].expand_as(step.mean[:4]))
    assert torch.allclose(log_prob[:4], normal.log_prob(value[:4]).mean((1, 2, 3)), rtol=1e-9)
    (slope,) = torch.autograd.grad(log_prob.sum(), output)
    assert log_prob[4] == 0 and not slope[4].any() and slope[:4].abs().amin(0).max() > 0


@pytest.mark.parametrize("form", ["gaussian", "official"])
def test_the_official_form_drops_the_variance_and_the_constants(form):
    schedule = flow(5, cps_log_prob=form)
    sample, output, value = states(5)
    step = schedule.denoise(output, sample, torch.arange(5))
    gaussian = gaussian_log_prob(value, step.mean, step.std)[:4]
    squared = -((value - step.mean) ** 2).mean((1, 2, 3))[:4]
    std = step.std[:4].flatten()
    constants = -std.log() - 0.5 * math.log(2 * math.pi)
    assert torch.allclose(gaussian, squared / (2 * std**2) + constants, rtol=1e-9)
    assert torch.allclose(schedule.log_prob(value, step)[:4], gaussian if form == "gaussian" else squared, rtol=1e-9)
    assert schedule.log_prob(value, step)[4] == 0


@pytest.mark.parametrize(("sde", "form"), [("cps", "gaussian"), ("cps", "official"), ("flow", "gaussian")])
def test_gains_are_the_gradient_of_the_log_probability(sde, form):
    schedule = flow(5, sde=sde, cps_log_prob=form)
    sample, output, noise = states(5)
    output.requires_grad_()
    step = schedule.denoise(output, sample, torch.arange(5))
    value = step.mean + step.std * noise
    (slope,) = torch.autograd.grad(schedule.log_prob(value, step).sum(), output)
    expected = schedule.gains().view(-1, 1, 1, 1) * noise.abs() / 36
    assert torch.allclose(slope[:4].abs(), expected[:4], rtol=1e-6)
    weights = step_weights(schedule, "equal-gain").double()
    heard = (weights * schedule.gains())[:4]
    assert weights[4] == 0 and weights[:4].mean().item() == pytest.approx(1, abs=1e-6)
    assert heard.max() / heard.min() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("sde", "form"), [("cps", "gaussian"), ("cps", "official"), ("flow", "gaussian"), ("dance", "gaussian")]
)
def test_log_probabilities_do_not_depend_on_the_resolution(sde, form):
    """The same latents four times over have the same mean log-density, its gradient a quarter for each element; so has
    the KL of two means."""
    schedule, index = flow(4, sde=sde, cps_log_prob=form), torch.arange(4)
    sample, output, value = states(4)
    output.requires_grad_()
    tile = lambda x: x.repeat(1, 1, 2, 2)  # noqa: E731
    step, larger = (schedule.denoise(f(output), f(sample), index) for f in (torch.clone, tile))
    small, large = schedule.log_prob(value, step), schedule.log_prob(tile(value), larger)
    assert small[:3].abs().min() > 0
    assert torch.allclose(small, large, rtol=1e-12)
    slopes = [torch.autograd.grad(log_prob.sum(), output)[0] for log_prob in (small, large)]
    assert torch.allclose(*slopes, rtol=1e-12)  # of the tiled one it is summed over the four copies
    kl, larger_kl = (gaussian_kl(s.mean, s.mean + f(value), s.std) for s, f in ((step, torch.clone), (larger, tile)))
    assert torch.allclose(kl, larger_kl, rtol=1e-12)


@pytest.mark.parametrize("rule", ["random:1", "window:1:1"])
def test_noise_level_weights_of_a_moving_step_differ_as_the_noise_does(rule):
    """T = 4, shift 1, sigmas 1, 3/4, 1/2, 1/4: Flow-GRPO's std is eta sqrt(s / (1 - s)) sqrt(1/4), with 3/4 for the s
    of the first denominator. So a window of one step has weights in the proportion sqrt(4) : sqrt(3) : sqrt(1), whose
    mean is (3 + sqrt(3)) / 3, in whatever epoch."""
    mean = (3 + 3**0.5) / 3
    by_place = {0: 2 / mean, 1: 3**0.5 / mean, 2: 1 / mean}
    seen = set()
    for epoch in range(12):
        settings = ScheduleSettings(steps=4, sampler="flow", sde="flow", eta=0.7, sde_steps=rule)
        schedule = flow(4, EULER, **schedule_options(settings, seed=3, epoch=epoch))
        (place,) = schedule.decision_steps().tolist()
        expected = [by_place[i] if i == place else 0.0 for i in range(4)]
        assert step_weights(schedule, "noise-level").tolist() == pytest.approx(expected, rel=1e-6)
        seen.add(place)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("rule", ["noise-level", "equal-gain"])
@pytest.mark.parametrize(("moving", "steps"), [("random:2", 5), ("window:2:1", 5), ("random:2:3", 3)])
def test_weights_of_a_step_do_not_depend_on_the_place_of_the_window(rule, moving, steps):
    """They are those of a fixed window over all steps that can be random, whose mean is 1."""
    whole = step_weights(flow(6, random_steps=range(steps)), rule)
    assert whole[:steps].mean().item() == pytest.approx(1, abs=1e-6)
    starts = set()
    for epoch in range(12):
        settings = ScheduleSettings(steps=6, sampler="flow", eta=0.7, sde_steps=moving)
        schedule = flow(6, **schedule_options(settings, seed=3, epoch=epoch))
        assert torch.equal(step_weights(schedule, rule), torch.where(schedule.random, whole, 0.0))
        starts.add(schedule.decision_steps()[0].item())
    assert len(starts) == steps - 1


def test_only_steps_of_the_window_are_random_and_trained():
    schedule, full = flow(6, random_steps=range(1, 3)), flow(6)
    assert (schedule.std() > 0).tolist() == [False, True, True, False, False, False]
    assert schedule.decision_steps().tolist() == [1, 2]
    assert full.decision_steps().tolist() == [0, 1, 2, 3, 4]
    lint(schedule, needs_log_prob=True)
    for rule in ("official", "skip-last", "equal-gain"):
        assert (step_weights(schedule, rule) > 0).tolist() == [False, True, True, False, False, False]
    sample, output, _ = states(6)
    ode = flow(6, sde="ode").denoise(output, sample, torch.arange(6))
    window, every = (s.denoise(output, sample, torch.arange(6)) for s in (schedule, full))
    assert torch.equal(window.mean[[0, 3, 4, 5]], ode.mean[[0, 3, 4, 5]])
    assert torch.equal(window.mean[1:3], every.mean[1:3])
    assert not gaussian_kl(window.mean, window.mean + 1, window.std)[[0, 3, 4, 5]].any()


def test_a_schedule_without_a_random_step_is_refused_where_log_probabilities_are_needed():
    for schedule, said in ((flow(1), "steps of 2 or more"), (flow(4, sde="ode"), "sde=cps"), (flow(4, eta=0.0), "eta")):
        lint(schedule, needs_log_prob=False)
        with pytest.raises(UsageError, match=said):
            lint(schedule, needs_log_prob=True)


def test_a_perfect_model_reaches_the_image_under_every_rule():
    """v = (x - x0) / s: whatever noise was drawn on the way, the last step lands on x0."""
    target = torch.randn(1, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for sde in ("cps", "flow", "dance", "ode"):
        schedule, current = flow(8, sde=sde), torch.ones_like(target)
        for i in range(8):
            output = (current - target) / schedule.sigmas[i]
            step = schedule.denoise(output, current, torch.tensor([i]))
            current = step.mean + step.std * torch.randn_like(target)
        assert torch.allclose(current, target, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (STATIC, {"eta": 1.1}, "at most 1 under sde = cps"),
        (STATIC, {"eta": -0.1}, "0 or more"),
        (STATIC, {"spacing": "leading"}, "trailing and linspace"),
        (STATIC, {"std_floor": 0.1}, "no std_floor"),
        (STATIC, {"prev_timestep": "official"}, "no prev_timestep"),
        (STATIC, {"sde": "flow", "cps_log_prob": "official"}, "belongs to sde = cps"),
        (STATIC, {"sigmas": (1.0, 0.5)}, "has 2 values"),
        (STATIC, {"sigmas": (1.0, 0.5, 0.5, 0.1)}, "must descend"),
        # In float32 the second value is the first.
        (STATIC, {"sigmas": (1.0, 1 - 1e-9, 0.5, 0.1)}, r"the list schedule\.sigmas \(eval\.sigmas .*Change that list"),
        # Descends in float32 until the shift takes 1 - 1e-6 to 1 - 1e-8, which rounds to 1.
        (
            EULER | {"shift": 100.0},
            {"sigmas": (1.0, 1 - 1e-6, 0.5, 0.1)},
            r"the list schedule\.sigmas .*Change that list",
        ),
        (EULER | {"shift": 0.0}, {}, "shift is above 0"),
        (EULER | {"invert_sigmas": True}, {}, "invert_sigmas"),
        (FLUX, {}, "image_seq_len"),
        (FLUX | {"max_image_seq_len": 256, "image_seq_len": 256}, {}, "base_image_seq_len = max_image_seq_len = 256"),
        ({"_class_name": "FlowMatchHeunDiscreteScheduler"}, {}, "names FlowMatchHeunDiscreteScheduler"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, {}, "names UniPCMultistepScheduler"),
        ({"_class_name": "DDIMScheduler"}, {}, "needs a flow-matching model"),
    ],
)
def test_what_cannot_be_sampled_is_refused(config, options, said):
    with pytest.raises(UsageError, match=said):
        flow(4, config, **options)


@pytest.mark.parametrize("sampler", ["ddim", "lcm"])
def test_samplers_with_noise_levels_refuse_a_flow_model_and_its_options(sampler):
    with pytest.raises(UsageError, match="is a flow-matching model"):
        make_schedule(STATIC, 4, sampler=sampler)
    for options in ({"sde": "flow"}, {"sigmas": (1.0,)}, {"random_steps": range(1)}, {"cps_log_prob": "official"}):
        with pytest.raises(UsageError, match="has no"):
            make_schedule({}, 4, sampler=sampler, **options)


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_one_step_of_a_stretched_schedule_has_no_sigmas():
    """diffusers divides 0 by 0 there."""
    with pytest.raises(UsageError, match="another number of steps"):
        flow(1, QWEN | {"image_seq_len": 256})


def test_what_made_the_steps_is_recorded():
    recorded = flow(4, FLUX | {"image_seq_len": 1024}).resolved
    assert recorded["sampler"] == "flow" and recorded["sde"] == "cps" and recorded["image_seq_len"] == 1024
    assert recorded["sigmas"] == flow(4, FLUX | {"image_seq_len": 1024}).sigmas.tolist()


def test_float32_log_probabilities_are_those_of_float64():
    """Also at sigmas close to 0, where a coefficient divides by sigma."""
    for sde in ("cps", "flow", "dance"):
        schedule = flow(28, spacing="linspace", sde=sde)
        sample, output, noise = states(28)
        exact = schedule.denoise(output, sample, torch.arange(28))
        value = exact.mean + exact.std * noise
        single = schedule.denoise(output.float(), sample.float(), torch.arange(28))
        gap = schedule.log_prob(value.float(), single) - schedule.log_prob(value, exact)
        assert gap.abs().max() < 2e-4
        assert replace(schedule).std().dtype == torch.float32
