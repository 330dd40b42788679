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

# Tolerances of the fixtures. In float32 the official Dance step divides by the square of sigmas down to 0.001.
FILES = {
    "flow": ("g_flow_sde.npz", {"mean": 1e-6, "log_prob": 1e-5, "gradient": 2e-6}),
    "cps": ("h_flow_cps.npz", {"mean": 1e-6, "log_prob": 1e-5, "gradient": 2e-6}),
    "dance": ("i_dance_sde.npz", {"mean": 3e-4, "log_prob": 1e-4, "gradient": 1e-4}),
}


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

    def given(self, name, step):
        return torch.from_numpy(self.file[f"in/T{self.steps}/{name}"][step])


def cases(sde):
    file = np.load(FLOW / FILES[sde][0])
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


@pytest.mark.parametrize("sde", FILES)
def test_means_deviations_and_samples(sde):
    tolerance, compared = FILES[sde][1]["mean"], 0
    for case in cases(sde):
        schedule = every_step_random(case, sde)
        for i in range(case.steps) if case.has("mean") else ():
            step = schedule.denoise(case.given("model_output", i), case.given("sample", i), torch.full((2,), i))
            assert error(step.mean, case.official("mean", i)) <= tolerance, (case.key, case.eta, i)
            # The official number of the two SDEs is the coefficient in front of sqrt(-dt).
            length = 1.0 if sde == "cps" else (schedule.sigmas[i] - schedule.sigmas[i + 1]).sqrt()
            assert (step.std.flatten() - case.official("std_dev_t", i) * length).abs().max() <= 1e-6, (case.key, i)
            if case.has("prev_sampled"):
                drawn = step.mean + step.std * case.given("noise", i)
                assert error(drawn, case.official("prev_sampled", i)) <= tolerance, (case.key, case.eta, i)
            compared += 1
    assert compared > 200


@pytest.mark.parametrize("sde", FILES)
def test_log_probabilities_and_their_gradients(sde):
    """Of CPS in the official form; where the SDEs have no noise the official log-probability is NaN."""
    tolerance, compared = FILES[sde][1], 0
    options = {"cps_log_prob": "official"} if sde == "cps" else {}
    for case in cases(sde):
        schedule = every_step_random(case, sde, **options)
        for i in range(case.steps) if case.has("log_prob_given") and case.eta > 0 else ():
            output = case.given("model_output", i).requires_grad_()
            step = schedule.denoise(output, case.given("sample", i), torch.full((2,), i))
            if sde == "cps" and i == case.steps - 1:  # no noise there: scored by the official code, never by ours
                assert not schedule.log_prob(case.given("prev_given", i), step).any()
                log_prob = official_cps_log_prob(case.given("prev_given", i), step.mean)
            else:
                log_prob = schedule.log_prob(case.given("prev_given", i), step)
            assert error(log_prob.detach(), case.official("log_prob_given", i)) <= tolerance["log_prob"], (case.key, i)
            if case.has("dlogp_dmodel"):
                (slope,) = torch.autograd.grad(log_prob.sum(), output)
                theirs = case.official("dlogp_dmodel", i)
                assert (slope - theirs).abs().max() <= tolerance["gradient"] * theirs.abs().max() + 1e-12, (case.key, i)
                compared += 1
    assert compared > 30


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
