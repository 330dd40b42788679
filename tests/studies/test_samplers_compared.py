"""Two models with unlike samplers: what a sampler keeps of its noise, and the arm that keeps the other one's share."""

import math
from dataclasses import replace

import numpy as np
import pytest

from sdpo_bench.rollout.schedule import make_schedule
from sdpo_bench.settings import ScheduleSettings
from sdpo_bench.statistics.intervals import crossed_interval
from sdpo_bench.statistics.matrices import Matrix
from sdpo_bench.studies.reward_prediction import RewardPrediction, matched_request
from sdpo_bench.studies.shared.contract import StudyRequest
from sdpo_bench.studies.shared.models_compared import ModelsCompared, Place
from sdpo_bench.studies.shared.sampler_noise import kept_noise, matched_eta, sampler_words
from sdpo_bench.studies.shared.samplers_compared import Arm, SamplersCompared
from sdpo_bench.studies.shared.true_rewards import study_sampler

DIFFUSION = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


# -- noise ---------------------------------------------------------------------------------------------------


def test_ancestral_ddim_keeps_the_ratio_of_signal_to_noise_before_and_after_the_step():
    """Eq. 16 in eq. 12: 1 - std^2 / (1 - a') = (a / (1 - a)) / (a' / (1 - a'))."""
    schedule = make_schedule(DIFFUSION, 6)
    a, b = schedule.alpha_t[:-1].double(), schedule.alpha_prev[:-1].double()
    kept = (a * (1 - b) / (b * (1 - a))).sqrt()
    assert kept_noise(schedule) == pytest.approx(kept.numpy(), abs=1e-6)
    assert kept.min() > 0.2 and kept.max() < 0.8


def test_ddim_without_noise_keeps_all_of_it():
    assert kept_noise(make_schedule(DIFFUSION, 6, eta=0.0)) == pytest.approx(np.ones(5))


@pytest.mark.parametrize("eta", [1.0, 0.6, 0.2])
def test_flow_cps_keeps_the_cosine_of_its_angle_at_every_step(eta):
    schedule = make_schedule(FLOW, 6, sampler="flow", eta=eta)
    assert kept_noise(schedule) == pytest.approx(np.full(5, math.cos(eta * math.pi / 2)), abs=1e-6)


def test_the_matched_eta_keeps_the_mean_share():
    """The mean share is 1/2 = cos(pi / 3) = cos(2/3 pi / 2)."""
    assert matched_eta(np.array([0.25, 0.75])) == 0.6667
    assert matched_eta(np.zeros(3)) == 1 and matched_eta(np.ones(3)) == 0


# -- what is said of samplers --------------------------------------------------------------------------------


def test_a_sampler_is_named_with_the_rule_of_its_random_steps():
    assert sampler_words(ScheduleSettings(eta=0.5)) == "ddim, eta 0.5"
    assert sampler_words(ScheduleSettings(sampler="flow", sde="dance")) == "flow, sde dance, eta 1"


def test_the_facts_name_the_sampler_of_each_model_and_the_rule_of_the_exploratory_arm():
    both, one = (RewardPrediction().design(StudyRequest(model=model)) for model in ("", "emoji-flow"))
    facts = dict(both.facts)
    assert facts["sampler"] == "emoji-turbo: ddim, eta 1; emoji-flow: flow, sde cps, eta 1"
    assert "that a step of emoji-turbo keeps at the same T" in facts["exploratory arm"]
    assert any("the model together with its sampler" in line for line in both.statistics)
    assert dict(one.facts)["sampler"] == "emoji-flow: flow, sde cps, eta 1"
    assert "exploratory arm" not in dict(one.facts)
    changed = dict(RewardPrediction().design(StudyRequest(overrides={"schedule.eta": 0.5})).facts)
    assert changed["sampler"] == "emoji-turbo: ddim, eta 0.5; emoji-flow: flow, sde cps, eta 0.5"


def test_the_exploratory_arm_differs_in_its_eta_alone():
    request = StudyRequest(seeds=(3,), overrides={"schedule.steps": 6})
    found = matched_request(request, "emoji-flow", np.array([0.25, 0.75]))
    assert study_sampler(found) == "flow, sde cps, eta 0.6667"
    own = {"schedule.steps": 6, "schedule.sde": "cps", "schedule.eta": 0.6667}
    assert found == replace(request, model="emoji-flow", overrides=own)


# -- the exploratory comparison ------------------------------------------------------------------------------

RULE, OTHER = "similarity", "last"


def around(mean):
    values = mean + 0.01 * np.array([[-1, 0, 1], [0, 1, -1]])
    return Matrix(values, (0, 1), ("cat", "dog", "fox"))


def grid(first, second):
    return {Place("align", RULE, 5): around(first), Place("align", RULE, 9): around(second)}


ARMS = (
    Arm("turbo", "ddim, eta 1", {5: 0.33, 9: 0.5}),
    Arm("flow", "flow, sde cps, eta 1", {5: 0.0, 9: 0.0}),
    Arm("flow with matched noise", "flow, sde cps, eta 0.786 and 0.667", {5: 0.33, 9: 0.5}),
)
DECLARED = ModelsCompared("flow", "turbo", RULE, grid(0.3, 0.3))
MATCHED = grid(0.001, 0.002) | {Place("align", OTHER, 5): around(0.9)}
SAMPLERS = SamplersCompared(DECLARED, ARMS, MATCHED, grid(-0.3, 0.001))


def test_the_answer_says_whether_it_depends_on_the_sampler():
    noise, to_reference, to_itself = SAMPLERS.sentences()
    assert noise.startswith("Share of the old noise that a step keeps")
    assert "turbo 0.33 and 0.50; flow 0.00 and 0.00 at T = 5 and 9." in noise
    assert "of each model together with its sampler, as its preset trains it" in noise
    sampler = "flow, sde cps, eta 0.786 and 0.667"
    start = f"Exploratory: on flow with matched noise ({sampler}) SDPO's prediction is "
    neither = "neither significantly better nor significantly worse than on turbo in any of 2 comparisons"
    assert to_reference == f"{start}{neither}, which is not equality."
    better = "significantly better than on flow as trained for align at T = 5"
    assert to_itself == f"{start}{better}; 1 of 2 comparisons are not significant."


def test_the_exploratory_grids_count_sdpo_s_rule_alone_by_benjamini_and_hochberg():
    """Two p values, the smaller one more than half of the larger one: both become the larger one. Holm would double."""
    near = grid(0.3, 0.31)
    larger, smaller = (crossed_interval(m).p_value() for m in near.values())
    assert larger / 2 < smaller < larger
    found = SamplersCompared(DECLARED, ARMS, near, near).to_itself.values()
    assert [contrast.adjusted_p for contrast in found] == pytest.approx([larger, larger])
    assert [place.rule for place in SAMPLERS.to_reference] == [RULE, RULE]


def test_a_reward_that_never_varies_in_an_arm_is_a_dash_with_its_reason():
    """At T = 9 of the exploratory arm."""
    first = {place: matrix for place, matrix in grid(0.1, 0.1).items() if place.steps == 5}
    table = SamplersCompared(DECLARED, ARMS, first, first).table()
    cells = [[cell.text for cell in row.cells] for row in table.groups[0].rows]
    assert [row[3] == "-" for row in cells] == [False, True, True]
    assert len(table.notes) == len(SAMPLERS.table().notes) + 1 and "never varies" in table.notes[-1]


def test_the_table_shows_the_declared_difference_beside_the_exploratory_ones():
    (group,) = SAMPLERS.table().groups
    shown = {row.cells[0].text: [cell.value for cell in row.cells[1::2]] for row in group.rows}
    assert list(shown) == [
        "flow minus turbo",
        "flow with matched noise minus turbo",
        "flow with matched noise minus flow",
    ]
    assert np.array(list(shown.values())) == pytest.approx(np.array([[0.3, 0.3], [0.001, 0.002], [-0.3, 0.001]]))
    turbo, *_ = SAMPLERS.noise_table().groups[0].rows
    assert [cell.text for cell in turbo.cells] == ["turbo", "ddim, eta 1", "0.33", "0.50"]
