"""Steps of flow-matching models against numbers of the official code: Flow-GRPO, Flow-CPS and DanceGRPO.

``SDPO_BENCH_FLOW_FIXTURES`` names another set. The official code makes every step random, the last one too; this
package leaves that one to the ODE, so the comparison turns it on (``every_step_random``).
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from places import FLOW

from sdpo_bench.rollout.flow import official_cps_log_prob
from sdpo_bench.rollout.schedule import make_schedule

FILES = {"flow": "g_flow_sde.npz", "cps": "h_flow_cps.npz", "dance": "i_dance_sde.npz"}
MEAN = {"flow": 1e-6, "cps": 1e-6, "dance": 1e-5}
LOG_PROB, GRADIENT = 1e-5, 2e-6

# The official Dance step computes the score as (x - (1 - s) x0^) / s^2. Where s is tiny the two terms cancel: each of
# their three roundings is half a unit of x in the last place, 2^-24 |x|, and the step multiplies their sum by
# eta^2 |dt| / 2s^2. At s = 0.001 and |x| = 3 that is up to 3e-4. In float64 the official mean is that far from its own
# formula, and ours within 1e-6. From sigma SMALL on, all Dance numbers agree within 1e-5. Below it the means agree
# within this bound, and the official mean has the official log-probability within 1e-5, and its gradient within 2e-6.
SMALL = 0.01
ROUNDINGS = 3


@dataclass(frozen=True)
class Case:
    """One schedule of a file at one noise level; numbers of a step by name."""

    file: object
    key: str
    level: int

    @property
    def steps(self):
        return int(self.key.split("/T")[1])

    @property
    def eta(self):
        return float(self.file["noise_levels"][self.level])

    def has(self, name):
        return f"{self.key}/{name}" in self.file

    def official(self, name, step):
        return torch.from_numpy(np.asarray(self.file[f"{self.key}/{name}"][self.level, step]))

    @property
    def scored(self):
        """Steps whose official log-probability is stored, and finite: without noise it is NaN."""
        return range(self.steps) if self.has("log_prob_given") and self.eta > 0 else range(0)

    def given(self, name, step):
        return torch.from_numpy(self.file[f"in/T{self.steps}/{name}"][step])


def cases(sde):
    file = np.load(FLOW / FILES[sde])
    return [Case(file, str(key), level) for key in file["keys"] for level in range(len(file["noise_levels"]))]


def every_step_random(case, sde, **options):
    mode, shift, _ = case.key.split("/")
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": float(shift.removeprefix("shift"))}
    spacing = {"default": "linspace", "explicit": "trailing"}[mode]
    schedule = make_schedule(config, case.steps, sampler="flow", sde=sde, eta=case.eta, spacing=spacing, **options)
    return replace(schedule, random=torch.full((case.steps,), case.eta > 0))


def error(ours, theirs):
    return float(((ours - theirs).abs() / theirs.abs().clamp(min=1)).max())


@pytest.mark.parametrize("sde", FILES)
def test_sigmas_and_timesteps_are_equal(sde):
    for case in cases(sde):
        schedule = every_step_random(case, sde)
        assert schedule.sigmas.numpy().tolist() == case.file[f"{case.key}/sigmas"].tolist(), case.key
        assert schedule.timesteps.numpy().tolist() == case.file[f"{case.key}/timesteps"].tolist(), case.key
        assert schedule.timesteps.dtype == torch.float32


def official_rounding(case, schedule, i):
    """Bound on the rounding error of the official Dance mean, one for each element."""
    sigma, step = schedule.sigmas[i], schedule.sigmas[i] - schedule.sigmas[i + 1]
    return ROUNDINGS * 2**-24 * case.given("sample", i).abs() * case.eta**2 * step / (2 * sigma**2)


def assert_mean(ours, theirs, sde, case, schedule, i):
    small = sde == "dance" and schedule.sigmas[i] < SMALL
    allowed = MEAN[sde] * theirs.abs().clamp(min=1) + (official_rounding(case, schedule, i) if small else 0)
    assert ((ours - theirs).abs() <= allowed).all(), (case.key, case.eta, i)


@pytest.mark.parametrize("sde", FILES)
def test_means_deviations_and_samples(sde):
    compared = 0
    for case in cases(sde):
        schedule = every_step_random(case, sde)
        for i in range(case.steps) if case.has("mean") else ():
            step = schedule.denoise(case.given("model_output", i), case.given("sample", i), torch.full((2,), i))
            assert_mean(step.mean, case.official("mean", i), sde, case, schedule, i)
            # The official number of the two SDEs is the coefficient in front of sqrt(-dt).
            length = 1.0 if sde == "cps" else (schedule.sigmas[i] - schedule.sigmas[i + 1]).sqrt()
            assert (step.std.flatten() - case.official("std_dev_t", i) * length).abs().max() <= 1e-6, (case.key, i)
            if case.has("prev_sampled"):
                drawn = step.mean + step.std * case.given("noise", i)
                assert_mean(drawn, case.official("prev_sampled", i), sde, case, schedule, i)
            compared += 1
    assert compared > 200


@pytest.mark.parametrize("sde", FILES)
def test_log_probabilities_and_their_gradients(sde):
    """Of CPS in the official form. Below SMALL those of Dance are of the official mean, whose error is its own."""
    compared = 0
    options = {"cps_log_prob": "official"} if sde == "cps" else {}
    for case in cases(sde):
        schedule = every_step_random(case, sde, **options)
        for i in case.scored:
            output = case.given("model_output", i).requires_grad_()
            step = schedule.denoise(output, case.given("sample", i), torch.full((2,), i))
            if sde == "dance" and schedule.sigmas[i] < SMALL:
                step = replace(step, mean=case.official("mean", i) + step.mean - step.mean.detach())
            if sde == "cps" and i == case.steps - 1:  # no noise there: scored by the official code, never by ours
                assert not schedule.log_prob(case.given("prev_given", i), step).any()
                log_prob = official_cps_log_prob(case.given("prev_given", i), step.mean)
            else:
                log_prob = schedule.log_prob(case.given("prev_given", i), step)
            assert error(log_prob.detach(), case.official("log_prob_given", i)) <= LOG_PROB, (case.key, i)
            if case.has("dlogp_dmodel"):
                (slope,) = torch.autograd.grad(log_prob.sum(), output)
                theirs = case.official("dlogp_dmodel", i)
                assert (slope - theirs).abs().max() <= GRADIENT * theirs.abs().max() + 1e-12, (case.key, i)
                compared += 1
    assert compared > 30


@pytest.mark.parametrize("sde", FILES)
def test_float32_steps_and_log_probabilities_are_those_of_float64(sde):
    """At every sigma of the fixtures, 0.001 included."""
    options = {"cps_log_prob": "official"} if sde == "cps" else {}
    for case in cases(sde):
        schedule = every_step_random(case, sde, **options)
        for i in case.scored:
            given, index = (
                [case.given(name, i) for name in ("model_output", "sample", "prev_given")],
                torch.full((2,), i),
            )
            single, double = (
                schedule.denoise(*given[:2], index),
                schedule.denoise(*(x.double() for x in given[:2]), index),
            )
            assert error(single.mean, double.mean) <= 1e-6, (case.key, case.eta, i)
            log_probs = schedule.log_prob(given[2], single), schedule.log_prob(given[2].double(), double)
            assert error(*log_probs) <= LOG_PROB, (case.key, case.eta, i)


def test_the_official_dance_mean_is_inexact_where_sigma_is_tiny():
    """Against the formula in float64 the official mean is off by more than 1e-5 at sigma 0.001, and nowhere else."""
    off = set()
    for case in cases("dance"):
        schedule = every_step_random(case, "dance")
        for i in range(case.steps) if case.has("mean") else ():
            x, v, theirs = (
                case.given("sample", i).double(),
                case.given("model_output", i).double(),
                case.official("mean", i),
            )
            s, after = schedule.sigmas[i].double(), schedule.sigmas[i + 1].double()
            drift = case.eta**2 / (2 * s)
            mean = x * (1 + drift * (after - s)) + v * (1 + drift * (1 - s)) * (after - s)
            if error(theirs, mean) > 1e-5:
                off.add(round(float(s), 6))
    assert 0.001 in off and max(off) < SMALL


def test_a_step_without_noise_is_scored_by_the_official_form_alone():
    """At eta 0 the official CPS log-probability is still finite; the function gives it, the schedule does not."""
    for case in cases("cps"):
        if case.eta == 0 and case.has("log_prob_given"):
            schedule = every_step_random(case, "cps", cps_log_prob="official")
            for i in range(case.steps):
                step = schedule.denoise(case.given("model_output", i), case.given("sample", i), torch.full((2,), i))
                log_prob = official_cps_log_prob(case.given("prev_given", i), step.mean)
                assert error(log_prob, case.official("log_prob_given", i)) <= 1e-5
                assert not schedule.log_prob(case.given("prev_given", i), step).any()
