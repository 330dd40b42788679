"""One prediction on two models: the interval of the difference, its family, and what the study says of it."""

import numpy as np
import pytest

from sdpo_bench.cli.entry import main
from sdpo_bench.errors import UsageError
from sdpo_bench.results.study_record import read_studies
from sdpo_bench.statistics.intervals import crossed_interval
from sdpo_bench.statistics.matrices import Matrix, paired
from sdpo_bench.studies import reward_prediction
from sdpo_bench.studies.shared import step_rewards
from sdpo_bench.studies.shared.contract import StudyRequest
from sdpo_bench.studies.shared.models_compared import ModelsCompared, Place, differences, with_spread
from sdpo_bench.studies.shared.reward_view import RewardView
from sdpo_bench.studies.shared.true_rewards import MODELS, Sampled, study_models, study_prompts

SEEDS, PROMPTS = (0, 1), ("cat", "dog", "fox")


def call(*words):
    """Exit code of the command."""
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    return stop.value.code


def matrix(*rows):
    return Matrix(np.array(rows), SEEDS[: len(rows)], PROMPTS[: len(rows[0])])


# -- the interval --------------------------------------------------------------------------------------------


def test_a_cell_that_raises_the_spread_lowers_the_error_in_standard_deviations():
    """Mean error 2, mean squared deviation 4: 1 - 2 (2/4 - 1) / 2 = 1.5 and 3 - 2 (6/4 - 1) / 2 = 2.5."""
    assert with_spread(matrix([1.0, 3.0]), matrix([2.0, 6.0])).values.tolist() == [[1.5, 2.5]]


def test_the_error_of_the_ratio_is_that_of_a_jackknife_over_prompts():
    """Leaving out one prompt at a time recomputes the standard deviation too; prompts with a wide reward have larger
    errors, so that the error as it stands varies more than its ratio."""
    generator = np.random.default_rng(0)
    prompts, steps = 60, 10
    width = generator.uniform(0.5, 2.0, size=(prompts, 1))
    truth = width * generator.normal(size=(prompts, steps))
    gap = np.abs(width * generator.normal(size=(prompts, steps))).mean(1)

    def ratio(chosen):
        return gap[chosen].mean() / truth[chosen].std()

    left_out = np.array([ratio(np.arange(prompts) != one) for one in range(prompts)])
    jackknife = (prompts - 1) * np.sqrt(left_out.var() / (prompts - 1))
    names = tuple(map(str, range(prompts)))
    error = Matrix(gap[None] / truth.std(), (0,), names)
    squares = Matrix(((truth - truth.mean()) ** 2).mean(1)[None], (0,), names)

    def standard_error(values):
        return values.std(ddof=1) / np.sqrt(prompts)

    assert standard_error(with_spread(error, squares).values) == pytest.approx(jackknife, rel=0.05)
    assert standard_error(error.values) > 1.15 * jackknife


def sampled(truth, similarity, members):
    n = len(SEEDS) * len(PROMPTS)
    cells = np.repeat(np.arange(n), members)
    kept = np.full(truth.shape[1] - 1, 0.5)
    return Sampled(similarity, {"r": truth}, cells // len(PROMPTS), cells % len(PROMPTS), kept)


def test_a_reward_in_other_units_is_predicted_as_well_on_both_models():
    """Ten times the reward has ten times the error and ten times the standard deviation."""
    generator, steps, members = np.random.default_rng(1), 5, 2
    truth = generator.normal(size=(len(SEEDS) * len(PROMPTS) * members, steps))
    vectors = generator.normal(size=(len(truth), steps, 4))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    similarity = vectors @ vectors.transpose(0, 2, 1)
    views = {
        name: [RewardView("r", {steps: sampled(scale * truth, similarity, members)}, SEEDS, PROMPTS, "")]
        for name, scale in (("one", 1.0), ("other", 10.0))
    }
    compared = reward_prediction.models_compared(views)
    (contrast,) = compared.declared().values()
    assert contrast.estimate.value == pytest.approx(0, abs=1e-12)
    own = views["one"][0]
    assert own.with_spread[steps][step_rewards.SDPO].values.mean() == pytest.approx(
        own.matrices[steps][step_rewards.SDPO].values.mean()
    )
    assert not np.allclose(
        own.with_spread[steps][step_rewards.SDPO].values, own.matrices[steps][step_rewards.SDPO].values
    )


def views(steps_of_truth):
    """One reward's view of each model from ``{model: {T: truth}}``; all predicted originals are alike."""
    found = {}
    for model, by_steps in steps_of_truth.items():
        truths = {n: sampled(truth, np.ones((len(truth), n, n)), 2) for n, truth in by_steps.items()}
        found[model] = [RewardView("r", truths, SEEDS, PROMPTS, model)]
    return found


@pytest.mark.parametrize("still", ["one", "other"])
def test_a_t_at_which_one_model_s_reward_never_varies_is_not_compared_and_said_so(still):
    """The errors of the one would be in units of the reward, those of the other in standard deviations."""
    varied = np.random.default_rng(2).normal(size=(12, 5)), np.random.default_rng(3).normal(size=(12, 10))
    truths = {model: dict(zip((5, 10), varied)) for model in ("one", "other")}
    truths[still][10] = np.full((12, 10), 0.1)
    assert np.full((12, 10), 0.1).std(ddof=1) > 0, "rounding gives equal numbers a standard deviation"
    compared = reward_prediction.models_compared(views(truths))
    assert {place.steps for place in compared.contrasts} == {5}
    text = "Not compared: r at T = 10. The true reward of at least one model never varies there"
    assert compared.sentences()[-1].startswith(text) and compared.table().notes[-1].startswith(text)


def test_models_with_nothing_to_compare_get_no_verdict():
    still, varied = np.zeros((12, 5)), np.random.default_rng(2).normal(size=(12, 5))
    (sentence,) = reward_prediction.models_compared(views({"one": {5: varied}, "other": {5: still}})).sentences()
    assert sentence.startswith("Not compared: r at T = 5.")


# -- the family ----------------------------------------------------------------------------------------------


def around(mean, width=0.01):
    """Three seeds' worth of evidence is not needed: two seeds, three prompts, ``mean`` and a little around it."""
    return matrix([mean - width, mean, mean + width], [mean, mean + width, mean - width])


RULE, OTHER = "similarity", "last"
DIFFERENCES = {
    Place("align", RULE, 5): around(0.001),
    Place("align", RULE, 20): around(0.3),
    Place("style", RULE, 5): around(-0.2),
    Place("style", RULE, 20): around(-0.002, width=0.1),
    Place("align", OTHER, 5): around(0.5),
    Place("style", OTHER, 5): around(0.0),
}


def test_holm_counts_all_rewards_and_t_of_the_main_rule_and_no_other_rule():
    compared = ModelsCompared("flow", "turbo", RULE, DIFFERENCES)
    declared = compared.declared()
    assert list(declared) == [place for place in DIFFERENCES if place.rule == RULE]
    p = {place: crossed_interval(DIFFERENCES[place]).p_value() for place in declared}
    assert declared["align", RULE, 20].adjusted_p == pytest.approx(4 * p["align", RULE, 20])
    assert declared["style", RULE, 5].adjusted_p == pytest.approx(3 * p["style", RULE, 5])
    explored = compared.contrasts["align", OTHER, 5]
    assert explored.adjusted_p == pytest.approx(2 * explored.estimate.p_value()), "two exploratory ones"


def test_the_answer_follows_from_the_numbers():
    answer, align, style = ModelsCompared("flow", "turbo", RULE, DIFFERENCES).sentences()
    assert answer == (
        "On flow latent similarity predicts step rewards significantly worse than on turbo for align at T = 20 and "
        "significantly better than on turbo for style at T = 5; 2 of 4 comparisons are not significant."
    )
    assert align.startswith("align, flow minus turbo: the error of SDPO's prediction is significantly larger at T = 20")
    assert "(+0.3, interval [0.2" in align and "adjusted p = 0.0" in align.partition("not significantly")[0]
    assert "not significantly different at T = 5 (+0.001, interval [" in align
    assert "power of 80 % for a difference of 0.0" in align.partition("not significantly")[2]
    assert "significantly smaller at T = 5 (-0.2" in style


def test_no_difference_is_not_said_to_be_equality():
    quiet = {place: m for place, m in DIFFERENCES.items() if place in [("align", RULE, 5), ("style", RULE, 20)]}
    answer = ModelsCompared("flow", "turbo", RULE, quiet).sentences()[0]
    assert answer == (
        "On flow latent similarity predicts step rewards neither significantly better nor significantly worse than on "
        "turbo in any of 2 comparisons, which is not equality."
    )


def test_a_comparison_of_which_only_the_interval_excludes_0_has_its_numbers_in_the_answer():
    near = around(0.03)
    estimate = crossed_interval(near)
    assert 0.05 / 3 < estimate.p_value() < 0.05
    few = {Place("style", RULE, 5): near}
    few |= {place: m for place, m in DIFFERENCES.items() if place in [("align", RULE, 5), ("style", RULE, 20)]}
    numbers = (
        f"style at T = 5 (+0.03, interval [{estimate.low:.3g}, {estimate.high:.3g}], but adjusted "
        f"p = {3 * estimate.p_value():.2g})"
    )
    answer = ModelsCompared("flow", "turbo", RULE, few).sentences()[0]
    assert answer.endswith(
        f"in any of 3 comparisons, which is not equality, though the interval excludes 0 for {numbers}."
    )
    answer = ModelsCompared("flow", "turbo", RULE, few | {Place("align", RULE, 20): around(0.9)}).sentences()[0]
    assert answer.endswith(f"; 3 of 4 comparisons are not significant, though the interval excludes 0 for {numbers}.")


def test_one_seed_has_no_interval_and_no_verdict():
    one = {Place("align", RULE, 5): matrix([0.5, 0.6, 0.4])}
    answer, align = ModelsCompared("flow", "turbo", RULE, one).sentences()
    assert "neither significantly better nor significantly worse" in answer
    assert "not significantly different at T = 5 (+0.5, one seed, no interval)" in align


def test_a_rule_that_one_model_has_no_finite_error_for_is_not_compared():
    a, b = around(0.5), around(0.2)
    found = differences("align", {5: {RULE: a, OTHER: a}}, {5: {RULE: b}})
    assert list(found) == [("align", RULE, 5)]
    assert np.array_equal(found["align", RULE, 5].values, paired(a, b).values)


def test_models_are_paired_by_prompt_and_other_prompts_are_refused():
    a = around(0.5)
    other = Matrix(a.values, SEEDS, ("cat", "dog", "bee"))
    with pytest.raises(UsageError, match="their prompts differ"):
        differences("align", {5: {RULE: a}}, {5: {RULE: other}})


# -- the study -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "models"),
    [
        ({}, MODELS),
        ({"rewards": ("jpeg-compressibility",)}, MODELS),
        ({"model": "emoji-flow"}, ("emoji-flow",)),
        ({"rewards": ("hpsv2",)}, ("sd-turbo",)),
        ({"preset": "embedded"}, ("emoji-turbo",)),
    ],
)
def test_a_model_reward_or_preset_of_one_model_leaves_no_other_to_compare(asked, models):
    assert study_models(StudyRequest(**asked)) == models


def test_both_models_have_the_same_prompts():
    first, second = (study_prompts(StudyRequest(model=model)) for model in MODELS)
    assert first == second and len(first) == 45


def test_the_design_declares_the_comparison_and_counts_both_models_and_the_exploratory_arm():
    study = reward_prediction.RewardPrediction()
    both, one = study.design(StudyRequest()), study.design(StudyRequest(model="emoji-flow"))
    assert both.denoiser_calls == 3 * one.denoiser_calls == 3 * 3 * 45 * 2 * (5 + 10 + 20 + 50)
    family = "SDPO's prediction on emoji-flow minus on emoji-turbo"
    assert any(family in line for line in both.statistics) and not any(family in line for line in one.statistics)


def test_the_study_answers_for_both_models(tmp_path):
    words = ["study", "reward-prediction", "--size", "tiny", "--reward", "jpeg-compressibility", "--seeds", "0,1"]
    assert call(*words, "--set", "schedule.steps=5", "--results", tmp_path) == 0
    (record,), problems = read_studies(tmp_path)
    assert not problems
    first, second, *rest = record.findings.conclusion
    assert first.startswith("On emoji-flow latent similarity predicts step rewards ")
    assert second.startswith("jpeg-compressibility, emoji-flow minus emoji-turbo: the error of SDPO's prediction is ")
    assert [sum(text.startswith(f"{m}, jpeg-compressibility: ") for text in rest) for m in MODELS] == [7, 7]
    assert sum(text.startswith("emoji-flow, with matched noise, jpeg-compressibility: ") for text in rest) == 2
    compared, _, samplers, accuracy, ranking = record.findings.tables
    kept = [[cell.text for cell in row.cells[1:]] for row in samplers.groups[0].rows]
    # DDIM at T = 5 keeps 0, .35, .48 and .48; arccos of their mean is .788 pi / 2.
    assert kept[0] == ["ddim, eta 1", "0.33"] and kept[1] == ["flow, sde cps, eta 1", "0.00"]
    assert kept[2][0].startswith("flow, sde cps, eta 0.788") and kept[2][1] == "0.33"
    assert ranking.groups[2].title == "emoji-flow, with matched noise, jpeg-compressibility"
    titles = [f"{model}, jpeg-compressibility" for model in MODELS]
    assert [group.title for group in accuracy.groups] == titles
    errors = [{row.cells[0].text: row.cells[1].value for row in group.rows} for group in accuracy.groups]
    for row in compared.groups[0].rows:
        rule = row.cells[0].text
        assert row.cells[1].value == pytest.approx(errors[1][rule] - errors[0][rule])
    assert [plot.name for plot in record.findings.plots] == [title.replace(", ", "-") for title in titles]
